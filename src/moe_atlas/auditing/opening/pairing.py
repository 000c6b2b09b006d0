"""Checks whether two checkpoints can be compared, from headers and configurations, before any tensor is read."""

from __future__ import annotations

from typing import Any

from moe_atlas.errors import InputRefused
from moe_atlas.models.spec import ModelSpec

Row = dict[str, Any]


def require_comparable(base: ModelSpec, tuned: ModelSpec, base_label: str, tuned_label: str) -> None:
    """Refuse a pair whose routed objects have different shapes, naming every difference.

    Raises:
        InputRefused: E_PAIR.
    """
    found = structural_differences(base, tuned)
    if found:
        named = "; ".join(f"{key}: {a} ≠ {b}" for key, a, b in found[:6])
        more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
        raise InputRefused(
            "E_PAIR",
            f"{base_label} and {tuned_label}",
            f"the checkpoints cannot be compared: {named}{more}",
            "an audit needs two checkpoints of one architecture",
        )


def structural_differences(base: ModelSpec, tuned: ModelSpec) -> list[tuple[str, Any, Any]]:
    """Return (property, base, tuned) for every difference that makes the routed objects incomparable."""
    rows: list[tuple[str, Any, Any]] = [
        ("width", base.width, tuned.width),
        ("layers", len(base.layers), len(tuned.layers)),
        ("routed layers", base.routed_layers, tuned.routed_layers),
    ]
    final = [sorted(ref.role for ref in spec.final_refs) for spec in (base, tuned)]
    rows.append(("tensors behind the layers", final[0], final[1]))
    for a, b in zip(base.layers, tuned.layers, strict=False):
        where = f"layer {a.index}"
        if a.moe and b.moe:
            rows += [
                (f"{where} experts", a.moe.router.experts, b.moe.router.experts),
                (f"{where} experts per token", a.moe.router.top_k, b.moe.router.top_k),
                (f"{where} router score", a.moe.router.score, b.moe.router.score),
                (f"{where} expert width", a.moe.expert_width, b.moe.expert_width),
            ]
        shapes_a, shapes_b = ({ref.name: list(ref.shape) for ref in layer.refs} for layer in (a, b))
        rows += [
            (name, shapes_a.get(name, "absent"), shapes_b.get(name, "absent"))
            for name in sorted(shapes_a.keys() | shapes_b.keys())
        ]
    return [row for row in rows if row[1] != row[2]]


def other_differences(base: ModelSpec, tuned: ModelSpec) -> list[Row]:
    """Return spec differences that leave the pair comparable, such as a rope scaling or an ε, for the receipt.

    Returns:
        One row for each key and pair of values: ``key``, ``base``, ``tuned`` and, within the layers, ``layers``, which
        ones it concerns.
    """
    whole = [{k: v for k, v in spec.describe().items() if k != "layers"} for spec in (base, tuned)]
    found: dict[str, Row] = {}
    for a, b in zip(base.layers, tuned.layers, strict=True):
        for row in _compare("", a.describe(), b.describe()):
            found.setdefault(repr(row), row | {"layers": []})["layers"].append(a.index)
    return [*_compare("", *whole), *found.values()]


def _compare(path: str, a: Any, b: Any) -> list[Row]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [row for key in keys for row in _compare(f"{path}.{key}".lstrip("."), a.get(key), b.get(key))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            row for i, (x, y) in enumerate(zip(a, b, strict=True)) for row in _compare(f"{path}[{i}]", x, y)
        ]
    return [] if a == b else [{"key": path, "base": a, "tuned": b}]
