"""What an audit refuses before it reads a tensor: probes that do not fit the model, processes that do not agree."""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.auditing.layer.batches import rounds
from moe_atlas.auditing.resume import dependencies
from moe_atlas.auditing.walk import Walk
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.configuration.accepting import OPTION
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.text import shown


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


def require_measurable(
    probes: ProbeSet, checkpoints: Sequence[TensorSource], specs: Sequence[ModelSpec]
) -> None:
    """Refuse a model without routed layers, and token ids that a checkpoint has no embedding for."""
    spec = specs[0]
    if not spec.routed_layers:
        raise InputRefused(
            "E_FAMILY",
            f"{checkpoints[0].label}: {spec.family}",
            "no routed experts: every layer of this model is dense, and atlas audits mixtures of experts alone",
            "there is nothing to audit in it, and nothing in it to change",
        )
    for checkpoint, of in zip(checkpoints, specs, strict=True):
        _require_ids(probes, checkpoint.label, of.vocab)
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


def _require_ids(probes: ProbeSet, label: str, vocab: int) -> None:
    """Refuse token ids that a checkpoint with so many has no embedding for."""
    beyond = [window for window in probes.windows if int(window.tokens.max()) >= vocab]
    if beyond:
        first = beyond[0]
        raise InputRefused(
            "E_PROBE_TOKENS",
            str(probes.config.path),
            f"domain {shown(probes.domain(first).name)}, document {shown(first.document_id)} holds token id "
            f"{int(first.tokens.max())}, and {shown(label)} has ids 0 to {vocab - 1} only; so do {len(beyond)} of "
            f"{len(probes.windows)} windows",
            "register the probe with a tokenizer whose ids both checkpoints have",
        )
