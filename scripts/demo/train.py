"""Base training with loss-free load balance, and supervised tuning with or without replay.

Load balance is the released models' own (Wang et al., 2024): no auxiliary loss; after each step an expert's
selection bias rises by a fixed step when it got less than its share, and falls when it got more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.demo.batches import IGNORED, Batch, Task, Text
from scripts.demo.model import Model
from scripts.demo.optimizer import base_optimizers

Report = Callable[[int, int, float], None]
"""Called with the step just done, the number of steps and the loss."""


@dataclass(frozen=True)
class BaseRecipe:
    """Base training. Learning rates warm up over 20 steps, hold, and fall to zero over the last 60 %."""

    steps: int = 560
    sequences: int = 16
    length: int = 128
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    bias_step: float = 0.01
    seed: int = 1


@dataclass(frozen=True)
class TuneRecipe:
    """Supervised tuning with AdamW; the selection bias stays as it is.

    Attributes:
        steps: optimiser steps; the rate warms up over a tenth of them and falls to zero along a cosine.
        items: task items in a batch.
        replay: windows of base training text in a batch; 0 tunes on the task alone.
        lr: peak rate of all parameters but the router's.
        router_lr: peak rate of the router's weights.
        seed: seed of the batches.
    """

    steps: int
    items: int
    replay: int
    lr: float
    router_lr: float
    seed: int

    def summary(self) -> str:
        """The recipe in a few words."""
        replay = f"{self.replay} windows of base text replayed" if self.replay else "no replay"
        return (
            f"{self.steps} steps of {self.items} items, {replay}, lr {self.lr:g}, router {self.router_lr:g}"
        )


def loss_of(model: Model, batch: Batch) -> Tensor:
    """Mean next-token negative log-likelihood over the scored positions, nats."""
    logits = model(batch.inputs).flatten(0, 1)
    return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def evaluate(model: Model, batch: Batch) -> float:
    """Loss without gradients."""
    return float(loss_of(model, batch))


def train_base(model: Model, text: Text, recipe: BaseRecipe, report: Report) -> None:
    """Train a fresh model in place."""
    optimizers = base_optimizers(model, recipe.muon_lr, recipe.adam_lr)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step in range(recipe.steps):
        factor = min(1.0, (step + 1) / 20, (recipe.steps - step) / (0.6 * recipe.steps))
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss = loss_of(model, text.draw(recipe.sequences, recipe.length))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        rebalance(model, recipe.bias_step * factor)
        report(step + 1, recipe.steps, float(loss.detach()))


@torch.no_grad()
def rebalance(model: Model, step: float) -> None:
    """Move every selection bias by `step` towards an equal load."""
    for moe in model.routed():
        moe.gate.e_score_correction_bias += step * (moe.load_E.mean() - moe.load_E).sign()


def tune(model: Model, text: Text, task: Task, recipe: TuneRecipe, report: Report) -> None:
    """Tune in place on the task, with base text replayed beside it if the recipe says so."""
    optimizer = torch.optim.AdamW(_tuned_groups(model, recipe), betas=(0.9, 0.95), weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(recipe.steps):
        factor = cosine(step, recipe.steps)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        batches = [task.draw(recipe.items)]
        if recipe.replay:
            batches.append(text.draw(recipe.replay, 128))
        # One mean over all scored tokens, as in any mixture of data: a batch weighs what it has tokens.
        scored = [int((batch.targets != IGNORED).sum()) for batch in batches]
        for batch, tokens in zip(batches, scored, strict=True):
            loss = loss_of(model, batch)
            (loss * (tokens / sum(scored))).backward()
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, recipe.steps, float(loss.detach()))


def _tuned_groups(model: Model, recipe: TuneRecipe) -> list[dict[str, Any]]:
    routers = [moe.gate.weight for moe in model.routed()]
    known = {id(weight) for weight in routers}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": others, "lr": recipe.lr}, {"params": routers, "lr": recipe.router_lr}]


def cosine(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then half a cosine down to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@torch.no_grad()
def load_per_expert(model: Model, batch: Batch) -> Tensor:
    """Routed tokens of every expert in every routed layer, float32 [routed layers, experts]."""
    model(batch.inputs)
    return torch.stack([moe.load_E for moe in model.routed()])
