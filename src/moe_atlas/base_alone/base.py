"""A base without a tuned checkpoint: opened once, and its yardstick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_atlas.auditing.cost.machine import full_precision, memory_errors_named, threads
from moe_atlas.auditing.facts import probe_facts
from moe_atlas.auditing.opening.folder import Folder
from moe_atlas.auditing.opening.sources import Given
from moe_atlas.auditing.processes.group import Group
from moe_atlas.auditing.run import measure_yardstick, open_checkpoints
from moe_atlas.checkpoint.digest import digest_checkpoint
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AuditOptions
from moe_atlas.probes.registration import ProbeSet, load_registered
from moe_atlas.views.registered import ProbeView
from moe_atlas.views.yardstick import Yardstick


@dataclass(frozen=True)
class OpenBase:
    """An opened base, for measurements that all see the same bytes.

    Attributes:
        checkpoint: its tensors.
        spec: its spec.
        probes: the registered probe set.
        folder: what stands beside the tensors.
    """

    checkpoint: TensorSource
    spec: ModelSpec
    probes: ProbeSet
    folder: Folder


def open_base(base: Given, probe: Path, options: AuditOptions) -> OpenBase:
    """Open a base from its headers, with a registered probe set.

    Raises:
        AtlasError: for every error that a user can cause.
    """
    probes = load_registered(probe, options.policy_from)
    (checkpoint,), (spec,) = open_checkpoints(base, None, probes, options)
    return OpenBase(checkpoint, spec, probes, Folder.of(probes, checkpoint, tuned=False))


def yardstick_alone(base: OpenBase, options: AuditOptions) -> dict[str, Any]:
    """Measure the yardstick of a base, or take it from the cache.

    Returns:
        `yardstick` and `probe`, both as views of what a receipt holds, the base's `family` and `digest`, and `layers`:
        experts and k by index of the routed layer.

    Raises:
        AtlasError: for every error that a user can cause.
    """
    with memory_errors_named(), threads(options.threads), full_precision():
        digest = digest_checkpoint(base.checkpoint)
        asked = replace(options, yardstick=True)
        yardstick = measure_yardstick(base.checkpoint, base.spec, base.probes, asked, Group(), digest)
    base.folder.require_unchanged()
    routers = {layer.index: layer.moe.router for layer in base.spec.layers if layer.moe}
    return {
        "yardstick": Yardstick(yardstick or {}, "yardstick"),
        "probe": ProbeView(probe_facts(base.probes, base.spec), "probe"),
        "family": base.spec.family,
        "digest": digest.sha256,
        "layers": {index: (router.experts, router.top_k) for index, router in routers.items()},
    }
