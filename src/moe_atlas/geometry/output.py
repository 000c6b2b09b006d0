"""State3 and the output shift: next-token NLL, KL divergence, agreement and task success, per window.

The vocabulary passes in parts, so that no whole row of logits is ever held; sums over it are kept relative to the
largest logit so far, in float64.

Legend: W windows, S tokens per window, P scored positions, V vocabulary, C its part at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PART = 4096  # columns of the head multiplied at a time
POSITIONS = 512  # positions they are multiplied with
LOWEST = torch.finfo(torch.float32).min

KEYS_ONE = ("nll", "token_accuracy", "exact_match")
KEYS_PAIR = ("kl", "top1_agreement")

Head = Callable[[slice], Tensor]
"""Maps a part of the vocabulary to float32 logits [P, C] of some positions."""


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
        self.normaliser_P = self.normaliser_P * shrink_P + terms_PC.sum(-1)
        self.max_P = max_P
        inside = ((self._targets_P >= first) & (self._targets_P < first + logits_PC.shape[1])).nonzero()
        inside = inside.squeeze(1)
        self.target_P[inside] = logits_PC[inside, self._targets_P[inside] - first]
        return terms_PC, shrink_P

    @property
    def log_normaliser_P(self) -> Tensor:
        """Ln Σ exp(logit), float64 [P]."""
        return self.max_P.double() + self.normaliser_P.log()


def window_outputs(
    heads: dict[str, Callable[[Tensor], Head]],
    states: dict[str, Tensor],
    tokens_S: Tensor,
    scored_S: Tensor,
    vocab: int,
    *,
    same: bool = False,
) -> dict[str, float]:
    """Means over the scored positions of one window, nats per token; infinite where not finite.

    Args:
        heads: per checkpoint (`base`, `tuned`) the map from final states [P, D] to their head.
        states: per checkpoint the window's final states [S, D].
        tokens_S: token ids, int64.
        scored_S: bool [S−1], positions 0…S−2 whose next-token prediction counts.
        vocab: V.
        same: the tuned checkpoint's head and states are the base's, bit for bit: multiplied once.

    Returns:
        `nll_base`, `token_accuracy_base`, `exact_match_base`, with a pair also `…_tuned`, `kl` (θ0‖θ1) and
        `top1_agreement`.
    """
    positions_P = scored_S.nonzero().squeeze(1)
    targets_P = tokens_S[1:][positions_P].to(states["base"].device)
    sums: dict[str, float] = {}
    for begin in range(0, len(positions_P), POSITIONS):
        chosen_P = positions_P[begin : begin + POSITIONS]
        chosen = {name: head(states[name][chosen_P]) for name, head in heads.items()}
        if same:
            chosen["tuned"] = chosen["base"]
        for key, value in _sums(chosen, targets_P[begin : begin + POSITIONS], vocab).items():
            sums[key] = sums.get(key, 0.0) + value
    count = max(len(positions_P), 1)
    means = {key: value / count for key, value in sums.items()}
    for name in heads:
        means[f"exact_match_{name}"] = float(sums[f"token_accuracy_{name}"] == len(positions_P))
    return {
        key: value if torch.isfinite(torch.tensor(value)) else float("inf") for key, value in means.items()
    }


def _sums(heads: dict[str, Head], targets_P: Tensor, vocab: int) -> dict[str, float]:
    """Sums over some positions."""
    seen = {name: OnlineSoftmax(targets_P) for name in heads}
    shift_P = torch.zeros(targets_P.shape, dtype=torch.float64, device=targets_P.device)
    for first in range(0, vocab, PART):
        part = slice(first, min(first + PART, vocab))
        once = {head: head(part) for head in set(heads.values())}  # the very same head is multiplied once
        logits = {name: once[head] for name, head in heads.items()}
        terms = {name: seen[name].see(logits_PC, first) for name, logits_PC in logits.items()}
        if len(heads) == 2:
            base_PC, shrink_P = terms["base"]
            shift_P = shift_P * shrink_P + _weighted(base_PC, logits["base"] - logits["tuned"])
    sums: dict[str, float] = {}
    for name, one in seen.items():
        sums[f"nll_{name}"] = float((one.log_normaliser_P - one.target_P.double()).sum())
        sums[f"token_accuracy_{name}"] = float((one.best_P == targets_P).sum())
    if len(heads) == 2:
        base, tuned = seen["base"], seen["tuned"]
        sums["kl"] = float(
            (shift_P / base.normaliser_P - base.log_normaliser_P + tuned.log_normaliser_P).sum()
        )
        sums["top1_agreement"] = float((base.best_P == tuned.best_P).sum())
    return sums


def _weighted(terms_PC: Tensor, difference_PC: Tensor) -> Tensor:
    """Σ exp(logit⁰ − max)·(logit⁰ − logit¹) over a part of the vocabulary, [P]; a term of weight 0 is 0."""
    sum_P = (terms_PC * difference_PC).sum(-1)
    if bool(torch.isfinite(sum_P).all()):
        return sum_P
    return torch.where(terms_PC == 0, 0.0, terms_PC * difference_PC).sum(-1)
