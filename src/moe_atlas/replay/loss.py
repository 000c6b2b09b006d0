"""State3 and the output shift: next-token NLL, KL divergence, agreement and task success, per window.

The audit processes the vocabulary in parts and applies each part to all scored positions before it reads the next
part. So memory never holds a whole head or a whole row of logits. Sums over the vocabulary are float64 and relative to
the largest logit so far.

Legend: P scored positions, V vocabulary, C entries of one part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_atlas.window_arrays import SIDES

PART = 4096  # vocabulary entries per part: rows of embedding or head in memory at a time
POSITIONS = 512  # positions that a part of the head is multiplied with at a time
LOWEST = torch.finfo(torch.float32).min


def vocabulary_parts(entries: int, begin: int = 0) -> list[range]:
    """Return the parts of a vocabulary of `entries` entries from id `begin` on, in order."""
    return [range(first, min(first + PART, entries)) for first in range(begin, entries, PART)]


class OnlineSoftmax:
    """The running softmax of some positions over the parts of the vocabulary: largest logit and normaliser so far.

    Every larger logit rescales the normaliser, as in Milakov and Gimelshein, "Online normalizer calculation for
    softmax" (arXiv:1805.02867).

    Attributes:
        max_P: largest logit so far, float32; before the first part, the lowest finite float32.
        normaliser_P: Σ exp(logit − max), float64.
        target_P: logit of the target, float32.
        best_P: index of the largest logit; of equal logits, the lowest index.
    """

    def __init__(self, targets_P: Tensor) -> None:
        self._targets_P = targets_P
        self.max_P = torch.full(targets_P.shape, LOWEST, device=targets_P.device)
        self.normaliser_P = torch.zeros(targets_P.shape, dtype=torch.float64, device=targets_P.device)
        self.target_P = torch.full_like(self.max_P, torch.nan)
        self.best_P = torch.zeros_like(targets_P)

    def add(self, logits_PC: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Add the logits of the vocabulary entries that start at `first`.

        Returns:
            exp(logit − max), float32 [P, C], and the factor that rescales earlier sums, float64 [P].
        """
        here_P = logits_PC.amax(-1)
        higher = (here_P > self.max_P).nonzero().squeeze(1)
        self.best_P[higher] = logits_PC[higher].argmax(-1) + first
        max_P = torch.maximum(self.max_P, here_P)
        shrink_P = (self.max_P - max_P).double().exp()
        terms_PC = (logits_PC - max_P[:, None]).exp_()
        # In place: small new tensors between the freed logits would keep that memory from returning to the system.
        self.normaliser_P.mul_(shrink_P).add_(terms_PC.sum(-1))
        self.max_P.copy_(max_P)
        inside = ((self._targets_P >= first) & (self._targets_P < first + logits_PC.shape[1])).nonzero()
        inside = inside.squeeze(1)
        self.target_P[inside] = logits_PC[inside, self._targets_P[inside] - first]
        return terms_PC, shrink_P

    @property
    def log_normaliser_P(self) -> Tensor:
        """The logarithm of Σ exp(logit), float64 [P]."""
        return self.max_P.double() + self.normaliser_P.log()

    @property
    def nll_P(self) -> Tensor:
        """The loss of the targets, nats, float64 [P]."""
        return self.log_normaliser_P - self.target_P.double()


class OutputSums:
    """Running output sums of some scored positions of one window, for each checkpoint and for the pair.

    Logits of the ids that both checkpoints have come first, from both together; then those of the ids that only one
    checkpoint has, from that checkpoint alone.

    Args:
        targets_P: the token that follows each position, int64, on the device of the logits.
        names: the checkpoints: `base` and, in a pair, `tuned`.
    """

    def __init__(self, targets_P: Tensor, names: Sequence[str]) -> None:
        self._targets_P = targets_P
        self._softmax = {name: OnlineSoftmax(targets_P) for name in names}
        self._shift_P = torch.zeros(targets_P.shape, dtype=torch.float64, device=targets_P.device)
        self._shared_passed = False

    def add(self, logits: Mapping[str, Tensor], first: int) -> None:
        """Add logits, float32 [P, C], of the entries that start at `first`, for each checkpoint that has them."""
        if len(logits) < len(self._softmax):
            self._close_shared()
        terms = {name: self._softmax[name].add(logits_PC, first) for name, logits_PC in logits.items()}
        if len(logits) == 2:
            base_PC, shrink_P = terms["base"]
            difference_PC = logits["base"] - logits["tuned"]
            self._shift_P.mul_(shrink_P).add_(_weighted(base_PC, difference_PC))

    def losses(self) -> dict[str, Tensor]:
        """Return the loss of each checkpoint at every position after the whole vocabulary, nats, float64 [P]."""
        return {name: softmax.nll_P for name, softmax in self._softmax.items()}

    def sums(self) -> dict[str, float]:
        """Return sums over the positions after the whole vocabulary; `positions` is the number of positions."""
        sums = {"positions": float(len(self._targets_P))}
        for name, softmax in self._softmax.items():
            sums[f"nll_{name}"] = float(softmax.nll_P.sum())
            sums[f"token_accuracy_{name}"] = float((softmax.best_P == self._targets_P).sum())
        if len(self._softmax) == 2:
            base, tuned = self._softmax["base"], self._softmax["tuned"]
            self._close_shared()
            sums["kl"] = float((self._shift_P + tuned.log_normaliser_P).sum())
            sums["top1_agreement"] = float((base.best_P == tuned.best_P).sum())
        return sums

    def _close_shared(self) -> None:
        """Form Σ p·(logit⁰ − logit¹) − ln Σ exp(logit⁰) over the shared ids, before the base's sum adds other ids."""
        if not self._shared_passed:
            base = self._softmax["base"]
            self._shift_P.div_(base.normaliser_P).sub_(base.log_normaliser_P)
            self._shared_passed = True


def window_outputs(parts: Sequence[OutputSums]) -> dict[str, float]:
    """Return means over the scored positions of one window, nats per token; infinite where a mean is not finite.

    Args:
        parts: the sums of all scored positions of the window, over the whole vocabulary.

    Returns:
        `nll_base`, `token_accuracy_base`, `exact_match_base`, with a pair also `…_tuned`, `kl` (θ0‖θ1, the base
        renormalised to the shared ids, the tuned checkpoint over all of its own) and `top1_agreement`.
    """
    sums: dict[str, float] = {}
    for part in parts:
        for key, value in part.sums().items():
            sums[key] = sums.get(key, 0.0) + value
    count = sums.pop("positions")
    means = {key: value / max(count, 1.0) for key, value in sums.items()}
    for side in SIDES:
        if f"token_accuracy_{side}" in sums:
            means[f"exact_match_{side}"] = float(sums[f"token_accuracy_{side}"] == count)
    return {
        key: value if torch.isfinite(torch.tensor(value)) else float("inf") for key, value in means.items()
    }


def _weighted(terms_PC: Tensor, difference_PC: Tensor) -> Tensor:
    """Return Σ exp(logit⁰ − max)·(logit⁰ − logit¹) over a part of the vocabulary, [P]; a term of weight 0 is 0."""
    sum_P = (terms_PC * difference_PC).sum(-1)
    if bool(torch.isfinite(sum_P).all()):
        return sum_P
    return torch.where(terms_PC == 0, 0.0, terms_PC * difference_PC).sum(-1)
