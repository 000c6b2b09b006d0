"""What a training does, as data: a base from scratch, and tuning of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Named = Callable[[str], bool]


@dataclass(frozen=True)
class Base:
    """Base training. Learning rates warm up over 20 steps, hold, and fall to zero over the last 60 %.

    Attributes:
        steps: optimiser steps.
        sequences: windows in a batch.
        length: predicted positions of a window.
        domains: what text is drawn from.
        muon_lr: peak rate of the hidden matrices.
        adam_lr: peak rate of everything else.
        bias_step: how far a selection bias moves in a step.
        seed: of the batches.
    """

    steps: int
    sequences: int
    length: int
    domains: tuple[str, ...] = ("prose", "code")
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    bias_step: float = 0.01
    seed: int = 1


@dataclass(frozen=True)
class Tune:
    """One tuning run with AdamW; the selection bias stays as it is.

    Attributes:
        task: the task's name; None for text alone.
        items: task items in a batch.
        replay: windows of base text in a batch; 0 for the task alone.
        domains: what base text is drawn from.
        length: predicted positions of a window of base text.
        steps: optimiser steps; the rate warms up over a tenth of them and falls to zero along a cosine.
        lr: peak rate.
        router_lr: peak rate of the routers; None takes `lr`.
        trains: which parameters are trained, by their part: all, router, experts, backbone, attention.
        seed: of the batches.
    """

    task: str | None = "style"
    items: int = 24
    replay: int = 18
    domains: tuple[str, ...] = ("prose", "code")
    length: int = 64
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


def tuned_groups(model: nn.Module, recipe: Tune) -> list[dict[str, Any]]:
    """The optimiser's groups, routers apart; everything else is frozen."""
    wanted = TRAINED[recipe.trains]
    rates = {True: recipe.lr if recipe.router_lr is None else recipe.router_lr, False: recipe.lr}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
        if wanted(name):
            groups[is_router(name)].append(parameter)
    return [{"params": found, "lr": rates[router]} for router, found in groups.items() if found]
