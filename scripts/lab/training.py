"""The lab's bases and tunes: the general recipes on a checkpoint's tensors."""

from __future__ import annotations

from scripts.lab.corpus import DOMAINS, TOKENS, corpus, items
from scripts.lab.families import Family, widened
from scripts.training import loop
from scripts.training.checkpoint import Tensors, released
from scripts.training.recipes import Base, Tune

BASE = Base(steps=500, sequences=24, length=TOKENS, domains=DOMAINS)


def train_base(family: Family, recipe: Base = BASE) -> Tensors:
    """A base trained from scratch on the three domains."""

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"  base {family.name}: step {step}, loss {loss:.3f}", flush=True)

    model = family.build(recipe.seed)
    loop.train_base(model, recipe, corpus(), report)
    return released(model)


def tune(family: Family, start: Tensors, recipe: Tune) -> Tensors:
    """Tune a checkpoint; what is not trained keeps its bytes."""
    model = widened(family, start)
    loop.tune(model, recipe, corpus(), items(recipe.task)[0] if recipe.task else ())
    return released(model)
