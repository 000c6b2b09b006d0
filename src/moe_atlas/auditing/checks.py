"""What an audit refuses before it reads a tensor: probes that do not fit the model, processes that do not agree."""

from __future__ import annotations

from moe_atlas.auditing.layer.batches import rounds
from moe_atlas.auditing.resume import dependencies
from moe_atlas.auditing.walk import Walk
from moe_atlas.configuration.accepting import OPTION
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet


def require_alike(walk: Walk, probes: ProbeSet, options: AuditOptions) -> None:
    """Refuse processes that share an audit and do not see and compute the same, or that outnumber the experts.

    Raises:
        UsageError: E_RANK.
    """
    passes = [list(part) for part in rounds(walk.batches, walk.held_tokens)]
    walk.group.agree(dependencies(walk, probes, options) | {"the memory": passes, "skipping": walk.skips})
    fewest = min(layer.moe.router.experts for layer in walk.sides[0].spec.layers if layer.moe)
    if walk.group.size > fewest:
        raise UsageError(
            "E_RANK",
            f"{walk.group.size} processes",
            f"a layer has {fewest} experts to share",
            "start as many processes at most",
        )


def require_allowed(probes: ProbeSet, spec: ModelSpec, label: str) -> None:
    """Refuse configuration keys that were accepted by hand where a central policy rules and does not allow it."""
    central = probes.config.central
    if spec.accepted and central is not None and "config_keys" not in probes.config.policy.allow:
        raise InputRefused(
            "E_POLICY",
            f"{label}: config.json: {next(iter(spec.accepted))}",
            f"accepted with {OPTION}, which the central policy {central.name} does not allow",
            "whoever owns the policy may write allow: [config_keys] into it",
        )


def require_measurable(probes: ProbeSet, spec: ModelSpec) -> None:
    """Refuse a model without routed layers, and token ids it has no embedding for."""
    if not spec.routed_layers:
        raise InputRefused(
            "E_FAMILY", spec.family, "no layer of this model routes: there is nothing to audit"
        )
    length = max(len(window.tokens) for window in probes.windows)
    for layer in spec.layers:
        limit = getattr(layer.mixer, "longest", None)
        if limit is not None and length > limit:
            raise InputRefused(
                "E_PROBE_TOKENS",
                str(probes.config.path),
                f"a window of {length} tokens, and layer {layer.index} of this {spec.family} model is replayed for "
                f"at most {limit}: beyond, it sees the keys that an earlier layer's indexer chose",
                "register shorter windows",
            )
    highest = max(int(window.tokens.max()) for window in probes.windows)
    if highest >= spec.vocab:
        raise InputRefused(
            "E_PROBE_TOKENS",
            str(probes.config.path),
            f"token id {highest} is beyond the model's vocabulary of {spec.vocab}",
            "register the probe with the tokenizer of this model",
        )
