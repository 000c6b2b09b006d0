"""State3 and the output shift: next-token NLL, KL divergence, agreement and task success, per window.

The vocabulary passes in parts, each of them all scored positions before the next, so that neither a head nor a row of
logits is ever held; sums over it are kept relative to the largest logit so far, in float64.

Legend: P scored positions, V vocabulary, C its part at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_atlas.window_arrays import SIDES

PART = 4096  # rows of embedding and head in memory at a time
POSITIONS = 512  # positions a part is multiplied with at a time
LOWEST = torch.finfo(torch.float32).min


def vocabulary(entries: int, begin: int = 0) -> list[range]:
    """The parts in which a vocabulary passes from id `begin` on, in order."""
    return [range(first, min(first + PART, entries)) for first in range(begin, entries, PART)]


class OnlineSoftmax:
    """The softmax of some positions while the vocabulary passes: largest logit and normaliser so far.

    Rescaled whenever a larger logit comes, as in Milakov and Gimelshein, "Online normalizer calculation for softmax"
    (arXiv:1805.02867).

    Attributes:
        max_P: largest logit so far, float32; the lowest number there is before the first.
        normaliser_P: Σ exp(logit − max), float64.
        target_P: logit of the target, float32.
        best_P: index of the largest logit, the lowest one of equals.
    """

    def __init__(self, targets_P: Tensor) -> None:
        self._targets_P = targets_P
        self.max_P = torch.full(targets_P.shape, LOWEST, device=targets_P.device)
        self.normaliser_P = torch.zeros(targets_P.shape, dtype=torch.float64, device=targets_P.device)
        self.target_P = torch.full_like(self.max_P, torch.nan)
        self.best_P = torch.zeros_like(targets_P)

    def see(self, logits_PC: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Take in the logits of vocabulary entries from `first` on.

        Returns:
            exp(logit − max), float32 [P, C], and the factor by which what was added up before shrinks, float64 [P].
        """
        here_P = logits_PC.amax(-1)
        higher = (here_P > self.max_P).nonzero().squeeze(1)
        self.best_P[higher] = logits_PC[higher].argmax(-1) + first
        max_P = torch.maximum(self.max_P, here_P)
        shrink_P = (self.max_P - max_P).double().exp()
        terms_PC = (logits_PC - max_P[:, None]).exp_()
        # In place: small survivors between the freed logits would keep these from the system.
        self.normaliser_P.mul_(shrink_P).add_(terms_PC.sum(-1))
        self.max_P.copy_(max_P)
        inside = ((self._targets_P >= first) & (self._targets_P < first + logits_PC.shape[1])).nonzero()
        inside = inside.squeeze(1)
        self.target_P[inside] = logits_PC[inside, self._targets_P[inside] - first]
        return terms_PC, shrink_P

    @property
    def log_normaliser_P(self) -> Tensor:
        """Ln Σ exp(logit), float64 [P]."""
        return self.max_P.double() + self.normaliser_P.log()


class Scored:
    """What some scored positions of a window have said while the vocabulary passes.

    Of a pair the ids that both checkpoints have pass first, both checkpoints together; then those of the one that has
    more, alone.

    Args:
        targets_P: the token that follows each position, int64, where the logits will be.
        names: the checkpoints, `base` and in a pair `tuned`.
    """

    def __init__(self, targets_P: Tensor, names: Sequence[str]) -> None:
        self._targets_P = targets_P
        self._seen = {name: OnlineSoftmax(targets_P) for name in names}
        self._shift_P = torch.zeros(targets_P.shape, dtype=torch.float64, device=targets_P.device)
        self._shared_passed = False

    def see(self, logits: Mapping[str, Tensor], first: int) -> None:
        """Take in logits, float32 [P, C], of vocabulary entries from `first` on, of each checkpoint that has them."""
        if len(logits) < len(self._seen):
            self._close_shared()
        terms = {name: self._seen[name].see(logits_PC, first) for name, logits_PC in logits.items()}
        if len(logits) == 2:
            base_PC, shrink_P = terms["base"]
            difference_PC = logits["base"] - logits["tuned"]
            self._shift_P.mul_(shrink_P).add_(_weighted(base_PC, difference_PC))

    def sums(self) -> dict[str, float]:
        """Sums over the positions, once the whole vocabulary has passed; `positions` says how many they are."""
        sums = {"positions": float(len(self._targets_P))}
        for name, one in self._seen.items():
            sums[f"nll_{name}"] = float((one.log_normaliser_P - one.target_P.double()).sum())
            sums[f"token_accuracy_{name}"] = float((one.best_P == self._targets_P).sum())
        if len(self._seen) == 2:
            base, tuned = self._seen["base"], self._seen["tuned"]
            self._close_shared()
            sums["kl"] = float((self._shift_P + tuned.log_normaliser_P).sum())
            sums["top1_agreement"] = float((base.best_P == tuned.best_P).sum())
        return sums

    def _close_shared(self) -> None:
        """Σ p·(logit⁰ − logit¹) − ln Σ exp(logit⁰) over the shared ids, before the base's sum takes in others."""
        if not self._shared_passed:
            base = self._seen["base"]
            self._shift_P.div_(base.normaliser_P).sub_(base.log_normaliser_P)
            self._shared_passed = True


def window_outputs(parts: Sequence[Scored]) -> dict[str, float]:
    """Means over the scored positions of one window, nats per token; infinite where not finite.

    Args:
        parts: all of its scored positions, the whole vocabulary having passed.

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
    """Σ exp(logit⁰ − max)·(logit⁰ − logit¹) over a part of the vocabulary, [P]; a term of weight 0 is 0."""
    sum_P = (terms_PC * difference_PC).sum(-1)
    if bool(torch.isfinite(sum_P).all()):
        return sum_P
    return torch.where(terms_PC == 0, 0.0, terms_PC * difference_PC).sum(-1)
