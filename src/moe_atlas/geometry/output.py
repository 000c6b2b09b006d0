"""State3 and the output shift: next-token NLL, KL divergence, agreement and task success, per window.

Legend: W windows, S tokens per window, P scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LOGIT_ELEMENTS = 1 << 23  # elements of one checkpoint's logits held at a time

KEYS_ONE = ("nll", "token_accuracy", "exact_match")
KEYS_PAIR = ("kl", "top1_agreement")


def window_outputs(
    heads: dict[str, Callable[[Tensor], Tensor]],
    states: dict[str, Tensor],
    tokens_S: Tensor,
    scored_S: Tensor,
    vocab: int,
) -> dict[str, float]:
    """Means over the scored positions of one window, nats per token; infinite where not finite.

    Args:
        heads: per checkpoint (`base`, `tuned`) the map from final states [P, D] to float32 logits [P, V].
        states: per checkpoint the window's final states [S, D].
        tokens_S: token ids, int64.
        scored_S: bool [S−1], positions 0…S−2 whose next-token prediction counts.
        vocab: V, which decides how many positions are held at a time.

    Returns:
        `nll_base`, `token_accuracy_base`, `exact_match_base`, with a pair also `…_tuned`, `kl` (θ0‖θ1) and
        `top1_agreement`.
    """
    positions_P = scored_S.nonzero().squeeze(1)
    targets_P = tokens_S[1:][positions_P]
    sums: dict[str, float] = {}
    for part in range(0, len(positions_P), step := max(1, LOGIT_ELEMENTS // vocab)):
        chosen = positions_P[part : part + step]
        log_probs = {
            name: torch.log_softmax(head(states[name][chosen]).float(), dim=-1)
            for name, head in heads.items()
        }
        for key, value in _chunk_sums(log_probs, targets_P[part : part + step]).items():
            sums[key] = sums.get(key, 0.0) + value
    count = max(len(positions_P), 1)
    means = {key: value / count for key, value in sums.items()}
    for name in heads:
        means[f"exact_match_{name}"] = float(sums[f"token_accuracy_{name}"] == len(positions_P))
    return {
        key: value if torch.isfinite(torch.tensor(value)) else float("inf") for key, value in means.items()
    }


def _chunk_sums(log_probs: dict[str, Tensor], targets_P: Tensor) -> dict[str, float]:
    sums: dict[str, float] = {}
    top = {name: log_PV.argmax(-1) for name, log_PV in log_probs.items()}
    for name, log_PV in log_probs.items():
        sums[f"nll_{name}"] = float(-log_PV.gather(1, targets_P[:, None]).double().sum())
        sums[f"token_accuracy_{name}"] = float((top[name] == targets_P).sum())
    if len(log_probs) == 2:
        base_PV, tuned_PV = log_probs["base"], log_probs["tuned"]
        terms_PV = base_PV.exp() * (base_PV - tuned_PV)
        terms_PV = torch.where(base_PV == -torch.inf, 0.0, terms_PV)  # 0·ln 0
        sums["kl"] = float(terms_PV.double().sum())
        sums["top1_agreement"] = float((top["base"] == top["tuned"]).sum())
    return sums
