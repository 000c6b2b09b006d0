"""Base training and every kind of tuning the lab knows, all on a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo.batches import IGNORED, Batch, Task, Text
from scripts.demo.optimizer import base_optimizers
from scripts.demo.train import cosine
from scripts.lab.corpus import DOMAINS, TOKENS, corpus, items
from scripts.lab.families import BIAS, Family, Tensors, released, widened

BASE_STEPS = 500
BASE_SEQUENCES = 24
BIAS_STEP = 0.01

Named = Callable[[str], bool]


@dataclass(frozen=True)
class Tune:
    """One tuning run.

    Attributes:
        task: `style`, `sums`, or None for text alone.
        items: task items in a batch.
        replay: windows of text in a batch.
        domains: what text is drawn from.
        steps: optimiser steps.
        lr: peak rate.
        router_lr: peak rate of the routers; None takes `lr`.
        trains: which parameters are trained, by their part: all, router, experts, backbone, attention.
        seed: of the batches.
    """

    task: str | None = "style"
    items: int = 24
    replay: int = 18
    domains: tuple[str, ...] = DOMAINS
    steps: int = 60
    lr: float = 1e-3
    router_lr: float | None = 1e-4
    trains: str = "all"
    seed: int = 1


TRAINED: dict[str, Named] = {
    "all": lambda name: True,
    "router": lambda name: is_router(name),
    "experts": lambda name: is_expert(name),
    "backbone": lambda name: not is_router(name) and not is_expert(name),
    "attention": lambda name: "self_attn" in name,
}


def is_router(name: str) -> bool:
    """Whether a parameter is a router's."""
    return ".mlp.gate." in name


def is_expert(name: str) -> bool:
    """Whether a parameter is one of the routed experts'."""
    return name.endswith(("mlp.gate_up_proj", "mlp.down_proj"))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean next-token negative log-likelihood over the scored positions, nats."""
    return F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


def train_base(family: Family, seed: int = 1, steps: int = BASE_STEPS) -> Tensors:
    """A base trained from scratch on the three domains."""
    model, text = family.build(seed), Text(corpus(), seed, DOMAINS)
    optimizers = base_optimizers(model, 0.02, 0.004)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step in range(steps):
        factor = min(1.0, (step + 1) / 20, (steps - step) / (0.6 * steps))
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss = loss_of(model, text.draw(BASE_SEQUENCES, TOKENS))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        rebalance(model, BIAS_STEP * factor)
        if step % 50 == 49:
            print(f"  base {family.name}: step {step + 1}, loss {float(loss.detach()):.3f}", flush=True)
    return released(model)


@torch.no_grad()
def rebalance(model: Any, step: float) -> None:
    """Move selection biases, where the family has them, towards an equal load."""
    for moe in model.routed():
        bias = getattr(moe.gate, BIAS, None)
        if bias is not None:
            bias += step * (moe.load_E.mean() - moe.load_E).sign()


def tune(family: Family, start: Tensors, recipe: Tune) -> Tensors:
    """Tune a checkpoint with AdamW; what is not trained keeps its bytes."""
    model = widened(family, start)
    optimizer = torch.optim.AdamW(_groups(model, recipe), betas=(0.9, 0.95), weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    text = Text(corpus(), recipe.seed, recipe.domains) if recipe.replay else None
    task = Task(items(recipe.task)[0], recipe.seed) if recipe.task else None
    for step in range(recipe.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * cosine(step, recipe.steps)
        batches = [task.draw(recipe.items)] if task else []
        batches += [text.draw(recipe.replay, TOKENS)] if text else []
        scored = [int((batch.targets != IGNORED).sum()) for batch in batches]
        for batch, tokens in zip(batches, scored, strict=True):
            (loss_of(model, batch) * (tokens / sum(scored))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return released(model)


def _groups(model: nn.Module, recipe: Tune) -> list[dict[str, Any]]:
    wanted = TRAINED[recipe.trains]
    rates = {True: recipe.lr if recipe.router_lr is None else recipe.router_lr, False: recipe.lr}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
        if wanted(name):
            groups[is_router(name)].append(parameter)
    return [{"params": found, "lr": rates[router]} for router, found in groups.items() if found]
