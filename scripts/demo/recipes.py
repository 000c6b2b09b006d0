"""What is trained: one base, the two tunes that are judged, and the tunes that set the budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scripts.demo.model import Shape
from scripts.demo.train import BaseRecipe, TuneRecipe

# Base text is replayed beside the task and the router hardly moves: learns the task, keeps the rest.
LIGHT = TuneRecipe(steps=130, items=32, replay=10, lr=1.2e-3, router_lr=1e-4, seed=1)

# The task and nothing else, the router as fast as the rest.
HARD = TuneRecipe(steps=80, items=24, replay=0, lr=3e-3, router_lr=3e-3, seed=1)

# Healthy tunes of other seeds: other items, other replayed text, another order. They set the budgets and are
# never judged by them.
REFERENCE_SEEDS = range(101, 105)


def _all_tunes() -> dict[str, TuneRecipe]:
    references = {f"reference/{seed}": replace(LIGHT, seed=seed) for seed in REFERENCE_SEEDS}
    return {"light": LIGHT, "hard": HARD} | references


@dataclass(frozen=True)
class Recipes:
    """Everything that decides what comes out; tests use a tiny one.

    Attributes:
        shape: sizes of the model.
        base: base training.
        tunes: tunes by name; `light` and `hard` are judged, those under `reference/` set the budgets.
    """

    shape: Shape = field(default_factory=Shape)
    base: BaseRecipe = field(default_factory=BaseRecipe)
    tunes: Mapping[str, TuneRecipe] = field(default_factory=_all_tunes)

    @property
    def references(self) -> list[str]:
        """Names of the tunes that set the budgets."""
        return [name for name in self.tunes if name.startswith("reference/")]
