"""`make demo`: train a small MoE, tune it gently and brutally, set budgets, audit both.

Exits 0 only if the light tune passed and the hard one failed. What is there already from the same recipes and
sources is not made again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from moe_atlas.cli import run
from moe_atlas.errors import AtlasError, Exit
from scripts.demo import screen, stages
from scripts.demo.place import Place
from scripts.demo.recipes import Recipes

EXPECTED = {"light": Exit.PASS, "hard": Exit.FAIL}


def demo(place: Place, recipes: Recipes) -> int:
    """Run every stage; return the exit code."""
    place.root.mkdir(parents=True, exist_ok=True)
    screen.title("1  A base model: DeepSeek-V3's shape in small, on the standard library's text")
    base_key = stages.make_base(place, recipes)
    screen.title("2  Tunes of it: a light one, a hard one, and healthy ones that will set the budgets")
    keys = stages.make_tunes(place, recipes, base_key)
    screen.title("3  Budgets: how far do healthy tunes move the atlas?")
    documents_key = stages.write_probes(place)
    references = stages.measure_references(place, recipes, keys, documents_key)
    changed = stages.write_policy(place, recipes, references)
    screen.title("4  Register what is measured, and under which budgets, before anything is judged")
    if atlas("register", str(place.probes), *(["--force"] if changed and place.lock.exists() else [])):
        return 1
    return judge(place)


def judge(place: Place) -> int:
    """Audit both pairs; 0 if each came out as a reader should expect."""
    codes = {}
    for number, name in enumerate(EXPECTED, start=5):
        screen.title(f"{number}  Audit the {name} tune")
        pair = (str(place.root / "base"), str(place.root / name))
        codes[name] = atlas(
            "audit", *pair, "--probe", str(place.probes), "--receipt", str(place.receipt(name)), "--force"
        )
    screen.title("Outcome")
    for name, code in codes.items():
        right = "as it should" if code == EXPECTED[name] else f"expected {int(EXPECTED[name])}"
        screen.say(f"  {name}: exit code {code}, {right}")
    return int(codes != EXPECTED)


def atlas(*arguments: str) -> int:
    """Run one command line of `atlas`, shown as one would type it."""
    screen.say(f"$ atlas {' '.join(arguments)}")
    return run(list(arguments))


def main() -> int:
    """The demo in ./demo."""
    # At this size threads mostly wait for each other, busily: on a machine that others use too, two of them take
    # several times as long as one. One thread also trains the same base, bit for bit, whatever the cores.
    torch.set_num_threads(1)
    started = time.monotonic()
    place = Place(Path("demo"))
    try:
        code = demo(place, Recipes())
    except (AtlasError, stages.DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    screen.say(f"  took {time.monotonic() - started:.0f} s")
    screen.hints(
        [
            (
                f"atlas verify {place.receipt('hard')}",
                "re-derive every number and the verdict, without weights",
            ),
            (f"atlas report {place.receipt('hard')} -o {place.root / 'hard.html'}", "the same for a browser"),
            (f"atlas inspect {place.root / 'base'}", "family, layers, experts, what an audit would replay"),
            (f"atlas baseline {place.root / 'base'} --probe {place.probes}", "the state of one checkpoint"),
            (f"less {place.probes}", "domains, budgets and where each comes from"),
        ]
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
