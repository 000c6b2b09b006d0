"""What is trained: one base, the two tunes that are judged, and the tunes that set the budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scripts.training.model import Shape
from scripts.training.recipes import Base, Tune

BASE = Base(steps=400, sequences=16, length=128)

# Base text is replayed beside the task and the router hardly moves: learns the task, keeps the rest.
LIGHT = Tune(steps=150, items=72, replay=6, length=64, lr=1.2e-3, router_lr=1.2e-4)

# The task and nothing else, the router as fast as the rest.
HARD = replace(LIGHT, steps=60, replay=0, lr=2e-3, router_lr=2e-3)

# Healthy tunes of other seeds: other items, other replayed text, another order. They set the budgets and are
# never judged by them.
REFERENCE_SEEDS = range(101, 105)


def _all_tunes() -> dict[str, Tune]:
    references = {f"reference/{seed}": replace(LIGHT, seed=seed) for seed in REFERENCE_SEEDS}
    return {"light": LIGHT, "hard": HARD} | references


@dataclass(frozen=True)
class Recipes:
    """Everything that decides what comes out; tests use a tiny one.

    Attributes:
        shape: sizes of the model.
        base: base training.
        tunes: tunes by name; `light` and `hard` are judged, those under `reference/` set the budgets.
        documents: held-out documents of each domain.
    """

    shape: Shape = field(default_factory=Shape)
    base: Base = BASE
    tunes: Mapping[str, Tune] = field(default_factory=_all_tunes)
    documents: int = 120

    @property
    def references(self) -> list[str]:
        """Names of the tunes that set the budgets."""
        return [name for name in self.tunes if name.startswith("reference/")]


def summary(recipe: Tune) -> str:
    """A tune in a few words."""
    replay = f"{recipe.replay} windows of base text replayed" if recipe.replay else "no replay"
    rates = f"lr {recipe.lr:g}, router {recipe.router_lr:g}"
    return f"{recipe.steps} steps of {recipe.items} items, {replay}, {rates}"
