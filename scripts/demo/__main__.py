"""`make demo`: train a small MoE, tune it gently and brutally, set budgets, audit both.

Exits 0 only if the light tune passed and the hard one failed. What is there already from the same recipes and
sources is not made again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from moe_atlas.errors import AtlasError, Exit
from scripts.demo import screen, stages
from scripts.demo.place import Place
from scripts.demo.recipes import Recipes

EXPECTED = {"light": Exit.PASS, "hard": Exit.FAIL}


def demo(place: Place, recipes: Recipes) -> int:
    """Run every stage; return the exit code."""
    place.root.mkdir(parents=True, exist_ok=True)
    with screen.stage("1  A base model: DeepSeek-V3's shape in small, on the standard library's text"):
        base_key = stages.make_base(place, recipes)
    with screen.stage("2  Tunes of it: a light one, a hard one, and healthy ones that will set the budgets"):
        keys = stages.make_tunes(place, recipes, base_key)
    with screen.stage("3  How far do healthy tunes move the atlas? Measured, with nothing gated"):
        documents_key = stages.write_probes(place, recipes.documents)
        stages.measure_references(place, recipes, keys, documents_key)
    with screen.stage("4  Budgets from these alone, registered before anything is judged"):
        stages.set_budgets(place)
    with screen.stage("5  Audit the light tune and the hard one"):
        codes = judge(place)
    return outcome(codes)


def judge(place: Place) -> dict[str, int]:
    """Audit both pairs and show what was said; return the exit codes."""
    lines = [stages.judging_line(place, name) for name in EXPECTED]
    codes = {}
    for name, line, done in zip(EXPECTED, lines, stages.side_by_side(lines), strict=True):
        screen.title(f"atlas {line[0]} {line[1]} {line[2]}")
        screen.output(done.output + done.errors if done.code not in stages.VERDICTS else done.output)
        codes[name] = done.code
    return codes


def outcome(codes: dict[str, int]) -> int:
    """0 if each pair came out as a reader should expect."""
    screen.title("Outcome")
    for name, code in codes.items():
        right = "as it should" if code == EXPECTED[name] else f"expected {int(EXPECTED[name])}"
        screen.say(f"  {name}: exit code {code}, {right}")
    return int(codes != EXPECTED)


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
    screen.say(f"  took {time.monotonic() - started:.0f} s in all")
    hard, light, base = place.receipt("hard"), place.receipt("light"), place.root / "base"
    screen.hints(
        [
            (f"atlas verify {hard}", "re-derive every number and the verdict, without weights"),
            (f"atlas report {hard} -o {place.root / 'hard.html'}", "the same for a browser"),
            (f"atlas diff {light} {hard}", "where the two tunes differ"),
            (f"atlas inspect {base}", "family, layers, experts, what an audit would replay"),
            (f"less {place.policy}", "the budgets and where each comes from"),
        ]
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
