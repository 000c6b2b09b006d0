"""Which tensors of a checkpoint are quantised, from its configuration and its headers alone.

The configuration says the format and its block or group size, the names say which tensors are stored in it, and
the headers must agree with both; whatever remains unexplained is refused, never guessed from a shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.checkpoint.quantised.schemes import Scheme, compressed_tensors, refuse
from moe_atlas.errors import InputRefused

SECTIONS = ("text_config", "llm_config", "language_config")
FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
TELLTALE = (
    "weight_scale_inv", "weight_scale", "_scale_inv", "weight_packed", "_blocks", "qweight", "qzeros", "g_idx",
    "weight_scale_2", "weight_global_scale", "quant_state.bitsandbytes__nf4", "absmax",
)  # fmt: skip
"""Endings of names that only quantised checkpoints have."""
MISSING = {
    "gptq": "its column order (g_idx) and two conventions for the zero point",
    "awq": "its interleaved packing order",
    "bitsandbytes": "its nested codebooks",
    "modelopt": "its scale names (weight_scale, weight_scale_2)",
    "fbgemm_fp8": "its per-row scales",
    "torchao": "its tensor subclasses",
    "quark": "its export layouts",
}
"""What decoding a known method would need."""

Tensors = Mapping[str, StoredTensor]


def detect(config: Mapping[str, Any], tensors: Tensors, label: str) -> dict[str, Encoded]:
    """Every quantised tensor by the name it stands for.

    Raises:
        InputRefused: ``E_QUANT`` for a format that is not decoded, a header that contradicts the configuration, or
            quantised tensors that no configuration explains.
    """
    settings = _settings(config, label)
    if settings is None:
        stray = next((name for name in tensors if name.endswith(TELLTALE)), None)
        if stray is not None:
            problem = "looks like a part of a quantised tensor, and config.json has no quantization_config"
            raise refuse(
                label, stray, problem, "add the quantization_config that the checkpoint was written with"
            )
        return {}
    method = str(settings.get("quant_method"))
    if method not in READERS:
        missing = MISSING.get(method, "its formula and tensor names")
        problem = f"quantisation not implemented; known: {', '.join(sorted(READERS))}; missing: {missing}"
        step = "audit a checkpoint that is not quantised, or add the format in moe_atlas/checkpoint/quantised"
        raise refuse(label, f"quant_method = {method!r}", problem, step)
    return {entry.name: entry for entry in READERS[method](settings, tensors, label)}


def _settings(config: Mapping[str, Any], label: str) -> Mapping[str, Any] | None:
    """The quantisation block, wherever a multimodal configuration keeps it; two must be the same."""
    places = [config, *(config[name] for name in SECTIONS if isinstance(config.get(name), dict))]
    keys = ("quantization_config", "compression_config")
    found = [place[key] for place in places for key in keys if isinstance(place.get(key), dict)]
    if any(other != found[0] for other in found):
        problem = (
            "stands in config.json twice, each time otherwise, and loaders disagree about which of them holds"
        )
        raise refuse(
            label, "quantization_config", problem, "keep the one that the checkpoint was written with"
        )
    return found[0] if found else None


def _fp8(settings: Mapping[str, Any], tensors: Tensors, label: str) -> Iterator[Encoded]:
    """`X` in float8 beside `X_scale_inv`, as DeepSeek and most others since store it."""
    block = settings.get("weight_block_size")
    size = tuple(block) if block else (0, 0)
    if len(size) != 2 or not all(type(n) is int and n >= 0 for n in size):
        raise refuse(label, f"weight_block_size = {block!r}", "expected two whole numbers")
    if settings.get("expert_dtype", "fp8") != "fp8":
        raise refuse(
            label, f"expert_dtype = {settings['expert_dtype']!r}", "only fp8 experts are decoded here"
        )
    for name in tensors:
        if name.endswith("_scale_inv"):
            values = name.removesuffix("_scale_inv")
            yield _scaled(Scheme("float", 8, size), tensors, {"values": values, "scale": name}, values, label)


def _compressed(settings: Mapping[str, Any], tensors: Tensors, label: str) -> Iterator[Encoded]:
    """`X.weight` or `X.weight_packed` beside `X.weight_scale`, the format set for each group of modules."""
    scheme_of = compressed_tensors(settings, label)
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last != "weight_scale":
            continue
        weight = f"{module}.weight"
        parts = {"scale": name}
        for role, suffix in PARTS.items():
            if f"{module}.{suffix}" in tensors:
                parts[role] = f"{module}.{suffix}"
        parts["values"] = f"{weight}_packed" if f"{weight}_packed" in tensors else weight
        yield BUILDERS[scheme_of(module).values](scheme_of(module), tensors, parts, weight, label)


PARTS = {
    "zero_point": "weight_zero_point",
    "global_scale": "weight_global_scale",
    "shape": "weight_shape",
    "order": "weight_g_idx",
}


def _mxfp4(settings: Mapping[str, Any], tensors: Tensors, label: str) -> Iterator[Encoded]:
    """`X_blocks` beside `X_scales`, as gpt-oss stores its experts."""
    for name in tensors:
        if name.endswith("_blocks"):
            whole = name.removesuffix("_blocks")
            yield _float4(
                Scheme("float4", 4, (1, 32)),
                tensors,
                {"values": name, "scale": f"{whole}_scales"},
                whole,
                label,
            )


READERS: Mapping[str, Callable[[Mapping[str, Any], Tensors, str], Iterator[Encoded]]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed,
    "mxfp4": _mxfp4,
}
"""`quant_method` to the function that lists its tensors."""


def _scaled(scheme: Scheme, tensors: Tensors, parts: dict[str, str], name: str, label: str) -> Encoded:
    values, scale = (
        _part(tensors, parts, "values", FLOAT8, label),
        _part(tensors, parts, "scale", SCALES, label),
    )
    if len(values.shape) not in (2, 3):
        raise refuse(
            label, values.name, f"expected a matrix or one per expert, found shape {list(values.shape)}"
        )
    if scheme.block == (0, 0):
        expected: tuple[tuple[int, ...], ...] = (
            (),
            (1,),
            (1, 1),
            values.shape[:-2],
            (*values.shape[:-2], 1, 1),
        )
    else:
        expected = ((*values.shape[:-2], *_grid(values.shape[-2:], scheme.block)),)
    if scale.shape not in expected:
        raise _shape(
            label, scale, expected[-1], f"for {list(values.shape)} in blocks of {list(scheme.block)}"
        )
    exponents = scale.dtype in ("F8_E8M0", "U8")
    return Encoded(name, values.shape, Encoding("fp8", scheme.block, exponents=exponents), parts)


def _packed(scheme: Scheme, tensors: Tensors, parts: dict[str, str], name: str, label: str) -> Encoded:
    if "order" in parts:
        raise refuse(label, parts["order"], "columns quantised in another order (actorder) are not decoded")
    words = _part(tensors, parts, "values", ("I32",), label)
    scale = _part(tensors, parts, "scale", SCALES[:3], label)
    _part(tensors, parts, "shape", ("I32", "I64"), label)
    rows, columns = (*words.shape[:-1], words.shape[-1] * 32 // scheme.bits)
    grid = _grid((rows, columns), scheme.block)
    if scale.shape != grid:
        raise _shape(label, scale, grid, f"for {[rows, columns]} in groups of {scheme.block[1]}")
    if not scheme.symmetric:
        zero = _part(tensors, parts, "zero_point", ("I32",), label)
        packed = (-(-rows * scheme.bits // 32), grid[1])
        if zero.shape != packed:
            raise _shape(label, zero, packed, "packed along the rows")
    elif "zero_point" in parts:
        raise refuse(label, parts["zero_point"], "a zero point where config.json says symmetric")
    encoding = Encoding("packed_integer", scheme.block, scheme.bits, scheme.symmetric)
    return Encoded(name, (rows, columns), encoding, parts)


def _float4(scheme: Scheme, tensors: Tensors, parts: dict[str, str], name: str, label: str) -> Encoded:
    values, scale = _part(tensors, parts, "values", ("U8",), label), tensors.get(parts["scale"])
    grouped = scale is not None and len(values.shape) > len(scale.shape)
    columns = 2 * (values.shape[-1] * values.shape[-2] if grouped else values.shape[-1])
    shape = (*values.shape[: -2 if grouped else -1], columns)
    nvidia = "global_scale" in parts
    scale = _part(tensors, parts, "scale", ("F8_E4M3",) if nvidia else ("U8", "F8_E8M0"), label)
    expected = (*shape[:-1], -(-columns // scheme.block[1]))
    if scale.shape != expected or (scheme.block[1] != (16 if nvidia else 32)):
        raise _shape(label, scale, expected, f"for {list(shape)} in groups of {scheme.block[1]}")
    encoding = Encoding("nvfp4" if nvidia else "mxfp4", scheme.block, 4, exponents=not nvidia)
    return Encoded(name, shape, encoding, parts)


BUILDERS: Mapping[str, Callable[[Scheme, Tensors, dict[str, str], str, str], Encoded]] = {
    "float": _scaled,
    "integer": _packed,
    "float4": _float4,
}


def _part(
    tensors: Tensors, parts: Mapping[str, str], role: str, dtypes: tuple[str, ...], label: str
) -> StoredTensor:
    found = tensors.get(parts[role]) if role in parts else None
    if found is None:
        where = parts.get(role, f"{parts['scale']}: {role}")
        raise refuse(label, where, "missing part of a quantised tensor")
    if found.dtype not in dtypes:
        raise refuse(label, found.name, f"expected {' or '.join(dtypes)}, found {found.dtype}")
    return found


def _grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks cover a matrix, the last ones perhaps only in part."""
    rows, columns = (-(-extent // (size or extent)) for extent, size in zip(shape, block, strict=True))
    return rows, columns


def _shape(label: str, found: StoredTensor, expected: tuple[int, ...], why: str) -> InputRefused:
    return refuse(label, found.name, f"expected shape {list(expected)} {why}, found {list(found.shape)}")
