"""Find the parts of a policy that cannot fail.

`register` names these parts, and so does every receipt judged under the policy. At registration the probe file alone
decides. A receipt also knows the model and the results of the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from moe_atlas.channels import BUDGETS, DRIFTS, REGISTERED
from moe_atlas.probes.settings.ceilings import HALF, LOSSES, toothless
from moe_atlas.probes.settings.policy import DAMAGE_STAGE
from moe_atlas.probes.settings.protected_layers import mid_band

Probe = Mapping[str, Any]

WRONG_BOUNDS = 0.05  # error of one bound; a confidence below 0.9 gives each of its two tails more
MOST_TOKENS = 1 << 20  # no vocabulary in use is larger: a uniform guess meets a limit of log(2**20) nats
UNJUDGED = (
    f"policy.stage {DAMAGE_STAGE} holds no channel of the atlas against a budget: a rewrite passes where it costs no "
    "base domain its loss"
)


@dataclass(frozen=True)
class Measured:
    """Facts that an audit knows and a registration does not.

    Attributes:
        routed: the routed layers.
        layers: experts and k of each protected layer.
        met: the task domains whose success rule the base alone meets.
    """

    routed: Sequence[int]
    layers: Sequence[tuple[int, int]]
    met: Sequence[str]


def cannot_fail(probe: Probe, measured: Measured | None = None) -> list[str]:
    """Return one line for each part of a policy that cannot fail, or hardly can.

    Args:
        probe: policy, domains, evaluation, windows and protected layers in the probe file's spelling.
        measured: the facts of an audit; None at registration.
    """
    rewrite, damage = probe["policy"]["rewrite"], probe["policy"]["damage"]
    judged = probe["policy"]["stage"] != DAMAGE_STAGE
    return [
        *([] if judged else [UNJUDGED]),
        *_budgets(rewrite, () if measured is None else measured.layers),
        *_channels(rewrite),
        *_refinement(rewrite.get("refinement")),
        *(
            _loss(f"policy.damage.{key}", key, value)
            for key, value in damage.items()
            if _too_wide(key, value)
        ),
        *_statistics(probe["policy"]),
        *_evaluation(probe.get("evaluation") or {}, (probe.get("windows") or {}).get("tokens")),
        *(_protected(probe["protected_layers"], measured) if judged else ()),
        *_canaries(probe["domains"]),
        *_tasks(probe["domains"], measured),
    ]


def loose_tail_guard(damage: Mapping[str, Any]) -> str | None:
    """Return why the tail guard misses damage in the tolerated share of documents, or None if it does not."""
    margin, document, share = (damage.get(key) for key in ("nll", "document_nll", "document_share"))
    if margin is None or document is None or share is None or document * share <= margin * (1 + 1e-9):
        return None
    return (
        f"document_nll {document:g} is above nll / document_share = {margin / share:.3g}: the tail guard does not "
        "see a mean increase of the margin that the tolerated share of documents carries alone"
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _budgets(rewrite: Probe, layers: Sequence[tuple[int, int]]) -> Iterator[str]:
    for key in BUDGETS:
        value, limit = rewrite.get(key), toothless(key, layers)
        if _is_number(value) and value >= limit:
            yield (
                f"policy.rewrite.{key} {value:g} is half of its range or more ({limit:.3g}): "
                "unrelated checkpoints lie there"
            )


def _channels(rewrite: Probe) -> Iterator[str]:
    """Warn if every drift channel is ungated while another channel is gated; a policy without any gate cannot pass."""
    gated = any(rewrite.get(channel.budget) is not None for channel in REGISTERED)
    drifts = [channel.budget for channel in DRIFTS]
    if gated and all(rewrite.get(key) is None for key in drifts):
        yield f"policy.rewrite gates none of {', '.join(drifts)}: the atlas may be another one"


def _refinement(refinement: Any) -> Iterator[str]:
    """Each of the three terms is at most its weight, so the margin cannot fall below tau minus their sum."""
    if not refinement:
        return
    most, tau = math.fsum(refinement["mu"]), refinement["tau"]
    if tau >= HALF * most:
        yield f"policy.rewrite.refinement.tau {tau:g} is half of what the weights mu can add up to ({most:g}) or more"


def _too_wide(key: str, value: Any) -> bool:
    return key in LOSSES and _is_number(value) and bool(value >= toothless(key))


def _loss(name: str, key: str, value: float) -> str:
    return f"{name} {value:g} {LOSSES[key][1]}"


def _statistics(policy: Probe) -> Iterator[str]:
    error = (1.0 - policy["confidence"]) / 2.0
    if error > WRONG_BOUNDS + 1e-9:
        yield f"policy.confidence {policy['confidence']:g} lets more than one bound in twenty be wrong"
    if (policy["resamples"] + 1) * error + 1e-9 < 1.0:
        yield (
            f"policy.resamples {policy['resamples']} are too few for a bound at a confidence of "
            f"{policy['confidence']:g}: drift neither passes nor fails"
        )


def _evaluation(evaluation: Probe, tokens: Any) -> Iterator[str]:
    quantile, stride = evaluation.get("quantile"), evaluation.get("token_stride")
    if _is_number(quantile) and quantile <= HALF:
        yield f"evaluation.quantile {quantile:g} hides what happens to half of the evaluated experts"
    if _is_number(stride) and _is_number(tokens) and stride >= tokens:
        yield f"evaluation.token_stride {stride} reads one token of each window, the first, which has no context"


def _protected(protected: Any, measured: Measured | None) -> Iterator[str]:
    if isinstance(protected, str):
        return
    if measured is None:
        if len(protected) == 1 and isinstance(protected[0], int):
            yield f"protected_layers names layer {protected[0]} alone: a rewrite of every other layer passes"
    elif len(protected) < len(mid_band(measured.routed)):
        yield (
            f"protected_layers guards {len(protected)} of {len(measured.routed)} routed layers, fewer than "
            "mid-band would: a rewrite of the others passes"
        )


def _canaries(domains: Sequence[Probe]) -> Iterator[str]:
    key = "max_nll_increase"
    for domain in domains:
        if _too_wide(key, domain.get(key)):
            yield _loss(f"domain {domain['name']}: {key}", key, domain[key])


def _tasks(domains: Sequence[Probe], measured: Measured | None) -> Iterator[str]:
    for domain in domains:
        rule = domain.get("success")
        if rule and (_met_anyway(rule) if measured is None else domain["name"] in measured.met):
            yield f"domain {domain['name']}: the base alone meets its success rule"


def _met_anyway(rule: Probe) -> bool:
    """Return whether no change, or a guess among a million tokens, meets a rule; only an audit measures the base."""
    if rule["metric"] == "nll":
        return bool(rule["at_most"] >= (0.0 if rule["relative_to_base"] else math.log(MOST_TOKENS)))
    return bool(rule["at_least"] <= 0.0)
