"""Muon for the matrices, AdamW for the rest: twice the progress of AdamW alone in the minutes we have.

Muon: momentum whose update is orthogonalised by a quintic Newton-Schulz iteration (Jordan et al., 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients that maximise the slope at zero; the singular values end up within about 0.7 and 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon over matrices and stacks of matrices [..., rows, columns].

    A group's `parts` says how many matrices stand side by side in one tensor; each gets its own update.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(average, group["momentum"])
        parts = direction.chunk(group["parts"], dim=-1)
        update = torch.cat([orthogonalised(part) for part in parts], dim=-1)
        # An orthogonal update moves tall matrices by more: keep the change of a row's output alike.
        scale = max(1.0, parameter.shape[-2] / parts[0].shape[-1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Move all singular values of each matrix of the stack close to one."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def is_matrix(name: str) -> bool:
    """Whether Muon takes this parameter: hidden matrices, but not the router, the embedding or the head."""
    return name.endswith(("_proj.weight", "_proj", "_mqa.weight")) and "layernorm" not in name


def base_optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """The two optimisers of base training, over disjoint parameters."""
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if is_matrix(name) and "gate_up" not in name]
    paired = [parameter for name, parameter in named if "gate_up" in name]
    others = [parameter for name, parameter in named if not is_matrix(name)]
    return [
        Muon(
            [{"params": matrices}, {"params": paired, "parts": 2}],
            lr=muon_lr,
            momentum=0.95,
            weight_decay=0.01,
        ),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
