"""Read the `quantization_config` of compressed-tensors: the format of each module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moe_atlas.checkpoint.headers.refuse import refusal
from moe_atlas.errors import InputRefused

FORMATS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "float-quantized": ("float", (8,)),
    "naive-quantized": ("float", (8,)),
    "pack-quantized": ("integer", (4, 8)),
    "nvfp4-pack-quantized": ("float4", (4,)),
    "mxfp4-pack-quantized": ("float4", (4,)),
}
"""Name of a format to the type of its values and their possible bits."""


@dataclass(frozen=True)
class Scheme:
    """How the weights of a group of modules are stored."""

    values: Literal["float", "integer", "float4"]
    bits: int
    block: tuple[int, int]
    """Numbers of rows and columns that share a scale; 0 means all."""
    symmetric: bool = True


def compressed_tensors(settings: Mapping[str, Any], label: str) -> Callable[[str], Scheme]:
    """Return a function from a module's name to the scheme of its weights.

    Raises:
        InputRefused: ``E_QUANT`` for a format or strategy that is not decoded.
    """
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise refuse(label, "config_groups", "expected the quantised groups of modules")
    named = {name: _scheme(group, settings, f"{label}: {name}") for name, group in groups.items()}
    targets = [
        (pattern, named[name]) for name, group in groups.items() for pattern in group.get("targets", [])
    ]

    def of(module: str) -> Scheme:
        """Return the scheme of the group that targets the module by name or pattern, else by its class."""
        special = [scheme for pattern, scheme in targets if _matches(pattern, module)]
        general = [scheme for pattern, scheme in targets if pattern == "Linear"]
        found = special or general
        if not found:
            raise refuse(label, module, "quantised, but no group of config_groups targets it")
        if any(scheme != found[0] for scheme in found):
            raise refuse(label, module, "targeted by groups of config_groups that differ")
        return found[0]

    return of


def _matches(pattern: str, module: str) -> bool:
    return bool(re.match(pattern[3:], module)) if pattern.startswith("re:") else pattern == module


def _scheme(group: Any, settings: Mapping[str, Any], where: str) -> Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise refuse(where, "weights", "expected how the weights are quantised")
    name = group.get("format") or settings.get("format")
    values, bits = FORMATS.get(str(name), ("", ()))
    kind = weights.get("type")
    if not bits or weights.get("num_bits") not in bits or kind != ("int" if values == "integer" else "float"):
        problem = f"{weights.get('num_bits')}-bit {kind} is not decoded; known: {', '.join(FORMATS)}"
        raise refuse(where, f"format = {name!r}", problem)
    symmetric = weights.get("symmetric", True)
    if not symmetric and values != "integer":
        raise refuse(where, "symmetric = False", "a zero point is decoded for packed integers only")
    if weights.get("actorder") not in (None, "static", "weight"):
        problem = "columns quantised in another order are not decoded"
        raise refuse(where, f"actorder = {weights['actorder']!r}", problem)
    scheme: Any = values
    return Scheme(scheme, weights["num_bits"], _block(weights, values, where), bool(symmetric))


def _block(weights: Mapping[str, Any], values: str, where: str) -> tuple[int, int]:
    strategy, group = weights.get("strategy"), weights.get("group_size")
    block: Any = weights.get("block_structure")
    if strategy in ("group", "tensor_group") and values != "float" and type(group) is int and group > 0:
        return (1, group)
    if strategy == "channel" and values != "float4":
        return (1, 0)
    if strategy == "tensor" and values == "float":
        return (0, 0)
    sizes = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    if strategy == "block" and values == "float" and sizes:
        return (block[0], block[1])
    problem = f"not decoded with group_size = {group!r} and block_structure = {block!r}"
    raise refuse(where, f"strategy = {strategy!r}", problem)


def refuse(where: str, what: str, problem: str, next_step: str = "") -> InputRefused:
    """Return an ``E_QUANT`` refusal that names the checkpoint and the tensor or key."""
    return refusal("E_QUANT", where, problem, next_step, name=what)
