"""Find the kind of each layer, dense or sparse, full or sliding, from a family's keys."""

from __future__ import annotations

from collections.abc import Callable

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.parts import LAYERS

LEGACY = {"mamba": "linear_attention", "attention": "full_attention"}
"""Former names of layer kinds."""


def dense_first(c: Config) -> Callable[[int], bool]:
    """Return the layer rule of DeepSeek and its relatives: the first `first_k_dense_replace` layers are dense."""
    first = c.integer("first_k_dense_replace")
    step = c.integer("moe_layer_freq", default=1)
    if step != 1:
        raise c.uncomputed(
            f"moe_layer_freq = {step}", "the reference implementation ignores this key unless it is 1"
        )
    return lambda index: index < first


def dense_by_type(c: Config, first_dense: int = 1) -> Callable[[int], bool]:
    """Return the layer rule of configs with `mlp_layer_types`; without this list the first layers are dense."""
    kinds, stated = c.optional("mlp_layer_types"), c.optional("first_k_dense_replace", default=None)
    first = first_dense if stated is None else c.integer("first_k_dense_replace")
    if kinds is None:
        return lambda index: index < first
    dense = [kind == "dense" for kind in kinds]
    if len(dense) != c.integer(*LAYERS):
        raise c.refuse(
            "mlp_layer_types", f"expected one for each of {c.integer(*LAYERS)} layers, found {len(dense)}"
        )
    if stated is not None and dense != [index < first for index in range(len(dense))]:
        c.implied("first_k_dense_replace", dense.count(True), "mlp_layer_types")
    return lambda index: dense[index]


def layer_kinds(c: Config, default: Callable[[int], str], first: str = "sliding_attention") -> list[str]:
    """Return `layer_types`, or the family's default without them; every kind is `first` or full attention."""
    given, layers = c.optional("layer_types"), c.integer(*LAYERS)
    kinds = (
        [default(i) for i in range(layers)] if given is None else [LEGACY.get(kind, kind) for kind in given]
    )
    odd = sorted(set(kinds) - {first, "full_attention"})
    if odd or len(kinds) != layers:
        found = f"{', '.join(odd)} among them" if odd else f"{len(kinds)} of them"
        raise c.refuse(
            "layer_types", f"expected {first} or full_attention for each of {layers} layers, found {found}"
        )
    return kinds


def dense_by_step(c: Config) -> Callable[[int], bool]:
    """Return the layer rule of the Qwen families: dense in `mlp_only_layers` and off the `decoder_sparse_step` grid."""
    only = c.integers("mlp_only_layers", default=[])
    step = c.integer("decoder_sparse_step", default=1)
    return lambda index: index in only or (index + 1) % step != 0


def sliding_window(c: Config, default: int | None = None, *, switch: bool) -> int | None:
    """Return the window of all layers, or None.

    Args:
        c: the config section of the text model.
        default: the window if the config leaves it out.
        switch: whether the class reads `use_sliding_window` and slides only if the key is true.
    """
    window: int | None = c.optional("sliding_window", default=default) or None
    if switch:
        window = window if c.flag("use_sliding_window", default=False) else None
    elif window is not None:
        c.implied("use_sliding_window", True, "sliding_window")
    kind = "full_attention" if window is None else "sliding_attention"
    c.implied("layer_types", [kind] * c.integer(*LAYERS), "sliding_window")
    return window
