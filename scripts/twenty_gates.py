"""A gate that is left alone: `make twenty-gates` trains a healthy and a sick tune, with twenty gates on the way.

Both start from the base that `make demo` left, under the demo's registration and budgets. The gate is the one of the
page: it stops a training when the run's escalation rule says intervene.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moe_atlas.integrations import CheckpointGate
from moe_atlas.ledger.history import History, read_history
from moe_atlas.ledger.store import Ledger
from scripts.coverage.page import replace_section
from scripts.demo.recipes import HARD, LIGHT
from scripts.gate_cost import DEMO, PAGE
from scripts.training.checkpoint import load, save
from scripts.training.corpus import load_corpus
from scripts.training.loop import tune
from scripts.training.model import Model
from scripts.training.recipes import Tune
from scripts.training.task import load_items

GATES = 20
CADENCE = 8  # steps between two gates
RUNS = {
    "healthy": ("the demo's light tune", replace(LIGHT, steps=GATES * CADENCE)),
    "sick": ("the demo's hard tune", replace(HARD, steps=GATES * CADENCE)),
}


class Stopped(Exception):
    """The gate stopped the training."""


@dataclass(frozen=True)
class Outcome:
    """How a training with gates ended.

    Attributes:
        recipe: the tune in a few words.
        gates: number of finished gates.
        stopped: the step at which the gate stopped the training; None if it came to its end.
        colours: the colour of the run after each gate, in order.
        state: the last state of the run.
        exit_code: the answer of `atlas gate`.
    """

    recipe: str
    gates: int
    stopped: int | None
    colours: Sequence[str]
    state: str
    exit_code: int


def train(model: Model, recipe: Tune, gate: CheckpointGate, work: Path) -> int | None:
    """Train with a gate at every checkpoint; return the step at which the gate stopped the training, if it did."""
    corpus = load_corpus()
    last = 0

    def after(step: int, _: float) -> None:
        nonlocal last
        last = step
        if step % CADENCE == 0:
            save(model, work / f"step-{step}")
            if gate(work / f"step-{step}", step):
                raise Stopped

    try:
        tune(model, recipe, corpus, load_items(corpus)[0], after)
    except Stopped:
        return last
    gate.finish()
    return None


def run(name: str, work: Path) -> Outcome:
    """Train one of the two and read its history."""
    words, recipe = RUNS[name]
    gate = CheckpointGate(
        DEMO / "base",
        DEMO / "probes.yaml",
        work / "gates",
        run=name,
        runs=work / "runs",
        stop_when="intervene",
        wait=True,  # a step of this model is so short that all twenty checkpoints would queue up
        arguments=("--policy-from", str(DEMO / "policy.yaml")),
    )
    stopped = train(load(DEMO / "base"), recipe, gate, work)
    return outcome(words, len(gate.results), stopped, read_history(Ledger(name, work / "runs")))


def outcome(words: str, gates: int, stopped: int | None, found: History) -> Outcome:
    """Return how a training ended, from the history of its run."""
    readings = list(found.readings.values())
    colours = [reading.colour or "–" for reading in readings]
    return Outcome(words, gates, stopped, colours, readings[-1].state, int(found.exit_code))


def spans(colours: Sequence[str]) -> str:
    """Return the colours in order, equal neighbours joined: ``GREEN at gates 1–3, RED at 4``."""
    starts = [n for n, colour in enumerate(colours) if n == 0 or colours[n - 1] != colour]
    ends = [*starts[1:], len(colours)]
    return ", ".join(
        f"{colours[a]} at {a + 1}" if b == a + 1 else f"{colours[a]} at {a + 1}–{b}"
        for a, b in zip(starts, ends, strict=True)
    )


def section(found: Sequence[Outcome]) -> str:
    """Return the measured part of the page."""
    rows = "\n".join(
        f"| {one.recipe} | {one.gates} | {spans(one.colours)} "
        f"| {'at its end' if one.stopped is None else f'by the gate, at step {one.stopped}'} "
        f"| `{one.state}`, {one.exit_code} |"
        for one in found
    )
    return f"""
`make twenty-gates` trains the demo's two tunes for {GATES * CADENCE} steps with a gate every {CADENCE}, as above.

| training | gates | colour of the run, by gate | ended | state and exit code of `atlas gate` |
|---|---:|---|---|---|
{rows}
"""


def main() -> None:
    """Train both, print what their gates said, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the outcome into {PAGE}")
    wanted = parser.parse_args()
    if not (DEMO / "probes.lock.json").exists():
        parser.error("there is no demo/: run `make demo` first")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    found = []
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found.append(run(name, Path(folder)))
    body = section(found)
    print(body)
    if wanted.write:
        replace_section(PAGE, "twenty-gates", body)


if __name__ == "__main__":
    main()
