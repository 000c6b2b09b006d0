"""Checks before the audit reads a tensor: the probes must fit the model, and all processes must agree."""

from __future__ import annotations

from collections.abc import Sequence

from moe_atlas.auditing.layer.batches import layer_passes
from moe_atlas.auditing.resume import dependencies
from moe_atlas.auditing.walk import Walk
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.configuration.accepting import OPTION
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.text import shown


def require_agreement(walk: Walk, probes: ProbeSet, options: AuditOptions) -> None:
    """Refuse processes that differ in inputs or options, or that outnumber the experts of a layer.

    Raises:
        UsageError: E_RANK.
    """
    passes = list(layer_passes(walk.batches, walk.held_tokens))
    walk.group.agree(dependencies(walk, probes, options) | {"the memory": passes, "skipping": walk.skips})
    fewest = min(layer.moe.router.experts for layer in walk.sides[0].spec.layers if layer.moe)
    if walk.group.size > fewest:
        raise UsageError(
            "E_RANK",
            f"{walk.group.size} processes",
            f"a layer has {fewest} experts to share",
            f"start at most {fewest} processes",
        )


def require_allowed(probes: ProbeSet, spec: ModelSpec, label: str) -> None:
    """Refuse configuration keys that the user accepted and a central policy does not allow.

    Raises:
        InputRefused: E_POLICY.
    """
    central = probes.config.central
    if spec.accepted and central is not None and "config_keys" not in probes.config.policy.allow:
        raise InputRefused(
            "E_POLICY",
            f"{label}: config.json: {next(iter(spec.accepted))}",
            f"accepted with {OPTION}, which the central policy {central.name} does not allow",
            "the owner of the policy can allow it with allow: [config_keys]",
        )


def require_measurable(
    probes: ProbeSet, checkpoints: Sequence[TensorSource], specs: Sequence[ModelSpec]
) -> None:
    """Refuse a model without routed layers, windows that the replay cannot compute, and ids beyond a vocabulary.

    Raises:
        InputRefused: E_FAMILY or E_PROBE_TOKENS.
    """
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
                f"a window has {length} tokens, but layer {layer.index} of this {spec.family} model is replayed for "
                f"at most {limit}: in longer windows, it uses keys that the indexer of an earlier layer selected",
                "register shorter windows",
            )


def _require_ids(probes: ProbeSet, label: str, vocab: int) -> None:
    """Refuse token ids beyond the vocabulary of a checkpoint."""
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
