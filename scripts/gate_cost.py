"""What a gate beside a training costs: `make gate-cost`, on what `make demo` left.

The demo's tune is trained again and again from the demo's base, in turns with and without a gate at every checkpoint;
both save at the same steps. Costs are CPU seconds, because a neighbour on the machine moves the clock but hardly
these: of this process, which trains, saves, starts gates and collects them, and of the gates, which are its children.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from moe_atlas.integrations import CheckpointGate
from scripts.coverage.page import replace_section
from scripts.demo.recipes import LIGHT
from scripts.training.checkpoint import load, save
from scripts.training.corpus import load_corpus
from scripts.training.loop import tune
from scripts.training.recipes import Tune
from scripts.training.task import load_items

PAGE = Path("docs/api.md")
DEMO = Path("demo")
BAR = 0.03  # the paper's, for what observing adds to training
LEVEL = 0.95


@dataclass
class Run:
    """CPU seconds of one training.

    Attributes:
        total: of the training process, saving and gating included.
        saving: of writing checkpoints.
        gating: of the training process inside the gate: starting audits, reading what they said.
        gates: of the audits themselves.
        verdicts: what they said; empty without a gate.
    """

    total: float = 0.0
    saving: float = 0.0
    gating: float = 0.0
    gates: float = 0.0
    verdicts: list[str | None] = field(default_factory=list)

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Add what the block costs this process."""
        before = time.process_time()
        yield
        setattr(self, on, getattr(self, on) + time.process_time() - before)


def children() -> float:
    """CPU seconds of every child that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def training(recipe: Tune, cadence: int, work: Path, gate: CheckpointGate | None) -> Run:
    """Train once, with a checkpoint every `cadence` steps and, if given, a gate at each."""
    corpus = load_corpus()
    model = load(DEMO / "base")
    items = load_items(corpus)[0]
    run, audited = Run(), children()

    def after(step: int, _: float) -> None:
        if step % cadence:
            return
        with run.spent("saving"):
            save(model, work / f"step-{step}")
        if gate is not None:
            with run.spent("gating"):
                gate(work / f"step-{step}", step)

    with run.spent("total"):
        tune(model, recipe, corpus, items, after)
        if gate is not None:
            with run.spent("gating"):
                gate.finish()
    run.gates = children() - audited
    run.verdicts = [result.verdict for result in gate.results] if gate else []
    return run


def demo_gate(receipts: Path) -> CheckpointGate:
    """A gate under the demo's registration."""
    policy = ("--policy-from", str(DEMO / "policy.yaml"))
    return CheckpointGate(DEMO / "base", DEMO / "probes.yaml", receipts, arguments=policy)


def pairs(recipe: Tune, cadence: int, repeats: int, say: Callable[[str], None]) -> list[tuple[Run, Run]]:
    """(without, with) a gate, `repeats` times, taking turns in who goes first."""
    found = []
    for repeat in range(repeats):
        runs: dict[bool, Run] = {}
        for gated in (False, True) if repeat % 2 == 0 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                runs[gated] = training(recipe, cadence, work, demo_gate(work / "gates") if gated else None)
        assert all(runs[True].verdicts), "a gate could not be carried out"
        found.append((runs[False], runs[True]))
        say(f"pair {repeat + 1}: training {runs[False].total:.1f} s without, {runs[True].total:.1f} s with")
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and Student's interval over repeats."""
    sample = np.asarray(values)
    reach = stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1) * sample.std(ddof=1) / len(sample) ** 0.5
    return float(sample.mean()), float(sample.mean() - reach), float(sample.mean() + reach)


def section(found: Sequence[tuple[Run, Run]], steps: int, cadence: int) -> str:
    """The measured part of the page."""
    gates = steps // cadence
    costs = {
        "one training step, *t*": [(plain.total - plain.saving) / steps for plain, _ in found],
        "saving one checkpoint": [plain.saving / gates for plain, _ in found],
        "the training's own part of a gate, *s*: starting the audit, reading it": [
            gated.gating / gates for _, gated in found
        ],
        "the audit, in its own process, *g*": [gated.gates / gates for _, gated in found],
        "the training's process with a gate, minus without": [
            (gated.total - plain.total) / gates for plain, gated in found
        ],
    }
    rows = "\n".join(
        f"| {name} | {{:.4g}} | {{:.4g}} to {{:.4g}} |".format(*interval(c)) for name, c in costs.items()
    )
    t, _, s, g, _ = (interval(values)[0] for values in costs.values())
    return f"""
`make gate-cost` trains the demo's light tune for {steps} steps with a checkpoint every {cadence}, in turns with and
without a gate at each, {len(found)} times; one thread for each process. CPU seconds, with the {LEVEL:.0%} interval over
the repeats:

| cost | mean | interval |
|---|---:|---:|
{rows}

A gate takes {s / t:.1%} of one step from the training itself. What it computes beside is worth {g / t:.0f} steps of
this small model. A gate every *c* steps costs (*s* + *g*) / (*c* · *t*) of the training in all:
{(s + g) / (cadence * t):.0%} at this run's {cadence}, and **under {BAR:.0%} from {least(s, g, t)} steps between gates
on**.
*g* does not grow with the training: put in your own *t*, and the seconds that `atlas plan` predicts for *g*.
"""


def least(s: float, g: float, t: float) -> int:
    """Fewest steps between two gates that keep their cost under the bar."""
    return math.ceil((s + g) / (BAR * t))


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cadence", type=int, default=25)
    parser.add_argument("--write", action="store_true", help=f"write the figures into {PAGE}")
    wanted = parser.parse_args()
    if not (DEMO / "probes.lock.json").exists():
        parser.error("there is no demo/: run `make demo` first")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    recipe = replace(LIGHT, steps=2 * wanted.cadence)
    found = pairs(recipe, wanted.cadence, wanted.repeats, print)
    body = section(found, recipe.steps, wanted.cadence)
    print(body)
    if wanted.write:
        replace_section(PAGE, "gate", body)


if __name__ == "__main__":
    main()
