"""The two loops: base training with loss-free load balance, and tuning on a task, on text, or on both.

Load balance is the released models' own (Wang et al., 2024): no auxiliary loss; after each step an expert's
selection bias rises by a fixed step when it got less than its share, and falls when it got more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.training.batches import IGNORED, Batch, Task, Text
from scripts.training.corpus import Corpus
from scripts.training.optimizer import base_optimizers
from scripts.training.recipes import Base, Tune, tuned_groups
from scripts.training.task import Item

Report = Callable[[int, float], None]
"""Called with the number of steps done and the last batch's loss, nats a token."""


def silent(step: int, loss: float) -> None:
    """Report nothing."""


def loss_of(model: Any, batch: Batch) -> Tensor:
    """Mean next-token negative log-likelihood over the scored positions, nats."""
    logits = model(batch.inputs).flatten(0, 1)
    return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED)


def train_base(model: Any, recipe: Base, corpus: Corpus, report: Report = silent) -> None:
    """Train a fresh model in place."""
    text = Text(corpus, recipe.seed, recipe.domains)
    optimizers = base_optimizers(model, recipe.muon_lr, recipe.adam_lr)
    rates = [_Rates(optimizer) for optimizer in optimizers]
    for step in range(recipe.steps):
        factor = min(1.0, (step + 1) / 20, (recipe.steps - step) / (0.6 * recipe.steps))
        for rate in rates:
            rate.scale(factor)
        loss = loss_of(model, text.draw(recipe.sequences, recipe.length))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        rebalance(model, recipe.bias_step * factor)
        report(step + 1, float(loss.detach()))


def tune(model: Any, recipe: Tune, corpus: Corpus, items: Sequence[Item], report: Report = silent) -> None:
    """Tune in place.

    Args:
        model: of any family; it is in training order, float32.
        recipe: what to do.
        corpus: where replayed text comes from.
        items: the task's training items; none where the recipe has no task.
        report: told every step.
    """
    text = Text(corpus, recipe.seed, recipe.domains) if recipe.replay else None
    task = Task(items, recipe.seed) if recipe.task else None
    optimizer = torch.optim.AdamW(tuned_groups(model, recipe), betas=(0.9, 0.95), weight_decay=0.0)
    rates = _Rates(optimizer)
    for step in range(recipe.steps):
        rates.scale(cosine(step, recipe.steps))
        batches = [task.draw(recipe.items)] if task else []
        batches += [text.draw(recipe.replay, recipe.length)] if text else []
        loss = _accumulate(model, batches)
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, loss)


def _accumulate(model: Any, batches: Sequence[Batch]) -> float:
    """Add the gradients of all batches; return the last one's loss.

    One mean over all scored tokens, as in any mixture of data: a batch weighs what it has tokens.
    """
    scored = [int((batch.targets != IGNORED).sum()) for batch in batches]
    for batch, tokens in zip(batches, scored, strict=True):
        loss = loss_of(model, batch)
        (loss * (tokens / sum(scored))).backward()
    return float(loss.detach())


class _Rates:
    """An optimiser's rates as shares of their peaks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.groups = optimizer.param_groups
        self.peaks = [group["lr"] for group in self.groups]

    def scale(self, factor: float) -> None:
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * factor


@torch.no_grad()
def rebalance(model: Any, step: float) -> None:
    """Move selection biases, where the family has them, by `step` towards an equal load."""
    for moe in model.routed():
        bias = getattr(moe.gate, "e_score_correction_bias", None)
        if bias is not None:
            bias += step * (moe.load_E.mean() - moe.load_E).sign()


def cosine(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then half a cosine down to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@torch.no_grad()
def evaluate(model: Any, batch: Batch) -> float:
    """Loss without gradients."""
    return float(loss_of(model, batch))


@torch.no_grad()
def load_per_expert(model: Any, batch: Batch) -> Tensor:
    """Routed tokens of every expert in every routed layer, float32 [routed layers, experts]."""
    model(batch.inputs)
    return torch.stack([moe.load_E for moe in model.routed()])
