"""The ``protected_layers`` expression: which routed layers the rewrite predicate guards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moe_atlas.errors import InputRefused
from moe_atlas.probes.reading.strict_yaml import Node, Scalar
from moe_atlas.probes.reading.strict_yaml import Sequence as Listed
from moe_atlas.text import quoted

_RANGE = re.compile(r"([0-9]{1,5})\s*-\s*([0-9]{1,5})\Z")
_MAX_LAYER = 99_999


@dataclass(frozen=True)
class LayerExpression:
    """Indices and ranges of the model's own 0-based layer numbers, ``all``, or ``mid-band``.

    Attributes:
        word: ``all``, ``mid-band`` or empty for a list.
        ranges: inclusive (first, last) pairs, a single index being (n, n).
        where: ``file:line`` of the expression.
    """

    word: str
    ranges: tuple[tuple[int, int], ...]
    where: str

    def resolve(self, routed_layers: list[int]) -> list[int]:
        """Return the protected layers of a model with these routed layers, ascending.

        Raises:
            InputRefused: E_PROBE_LAYERS if a named layer is dense or does not exist: the file would promise a gate that
                the audit cannot have.
        """
        routed = sorted(routed_layers)
        if self.word == "mid-band":
            return mid_band(routed)
        if self.word == "all":
            return routed
        wanted = sorted({layer for first, last in self.ranges for layer in range(first, last + 1)})
        missing = [layer for layer in wanted if layer not in set(routed)]
        if missing:
            raise InputRefused(
                "E_PROBE_LAYERS",
                self.where,
                f"protected layers {_spell(missing)} are not routed layers of this model",
                f"its routed layers are {_spell(routed)}",
            )
        return wanted

    def describe(self) -> str | list[int | str]:
        """Return the expression in the probe file's spelling."""
        if self.word:
            return self.word
        return [first if first == last else f"{first}-{last}" for first, last in self.ranges]


def mid_band(routed: Sequence[int]) -> list[int]:
    """Return the n routed layers without the first and the last ceil(n/4); all of them if none is left."""
    drop = -(-len(routed) // 4)
    return list(routed[drop : len(routed) - drop] or routed)


def _spell(layers: list[int]) -> str:
    """Return ascending indices as text, ``3-5, 7``."""
    return ", ".join(map(str, ranges(layers))) or "none"


def ranges(layers: Sequence[int]) -> list[int | str]:
    """Return ascending indices as a probe file spells them, ``["3-5", 7]``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return [first if first == last else f"{first}-{last}" for first, last in runs]


def read_layers(node: Node, file: str) -> LayerExpression:
    """Read the expression ``protected_layers``.

    Raises:
        InputRefused: E_PROBE_VALUE for anything but ``all``, ``mid-band``, or a list of indices and ascending
            ranges that do not overlap.
    """
    where = f"{file}:{node.line}"
    if isinstance(node, Scalar) and node.value in ("all", "mid-band"):
        return LayerExpression(str(node.value), (), where)
    if not isinstance(node, Listed):
        problem = "protected_layers must be all, mid-band or a list such as [3, 8-20]"
        raise InputRefused("E_PROBE_VALUE", where, problem)
    if not node.items:
        problem = "protected_layers is empty: nothing would be guarded"
        raise InputRefused("E_PROBE_VALUE", where, problem)
    ranges = tuple(_range(item, file) for item in node.items)
    layers = [layer for first, last in ranges for layer in range(first, last + 1)]
    if len(layers) != len(set(layers)):
        raise InputRefused("E_PROBE_VALUE", where, "protected_layers names a layer twice")
    return LayerExpression("", ranges, where)


def _range(node: Node, file: str) -> tuple[int, int]:
    where = f"{file}:{node.line}"
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_LAYER:
        return value, value
    match = _RANGE.match(value) if isinstance(value, str) else None
    if match is None:
        problem = f"protected_layers takes indices and ranges such as 8-20, found {quoted(str(value), 40)}"
        raise InputRefused("E_PROBE_VALUE", where, problem)
    first, last = int(match[1]), int(match[2])
    if first >= last:
        raise InputRefused("E_PROBE_VALUE", where, f"the range {first}-{last} does not ascend")
    return first, last
