"""`quant_method` modelopt: float8, or 4-bit floats in bytes, as NVIDIA's ModelOpt exports them.

The settings stand in config.json as `quantization_config`, or in a file of their own, `hf_quant_config.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.quantised.parts import Tensors, float4, left_out, refuse_orphans, scaled, strings
from moe_atlas.checkpoint.quantised.schemes import Scheme, refuse

ALGORITHMS: Mapping[str, Scheme] = {
    "FP8": Scheme("float", 8, (0, 0)),
    "FP8_PER_CHANNEL_PER_TOKEN": Scheme("float", 8, (1, 0)),
    "FP8_PB_WO": Scheme("float", 8, (128, 128)),
    "MXFP8": Scheme("float", 8, (1, 32)),
    "NVFP4": Scheme("float4", 4, (1, 16)),
    "W4A16_NVFP4": Scheme("float4", 4, (1, 16)),
    "W4A8_NVFP4_FP8": Scheme("float4", 4, (1, 16)),
    "MXFP4": Scheme("float4", 4, (1, 32)),
    "W4A8_MXFP4_FP8": Scheme("float4", 4, (1, 32)),
}
"""Value of `quant_algo` to the format of weights; its settings for activations have no effect in a replay."""
MISSING: Mapping[str, str] = {
    "NVFP4_AWQ": "its scale of the inputs (pre_quant_scale)",
    "NVFP4_SVD": "its matrices of low rank beside the weight",
    "W4A16_AWQ": "its scale of the inputs (pre_quant_scale)",
    "W4A8_AWQ": "its scale of the inputs (pre_quant_scale)",
    "W8A16": "its integers of 8 bits",
    "W8A8_SQ_PER_CHANNEL": "its scale of the inputs (pre_quant_scale)",
}
ENDINGS = ("weight_scale", "weight_scale_2")
MIXED = "MIXED_PRECISION"


def normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a normal form: the algorithm, and the modules with an algorithm of their own."""
    inner = _inner(settings)
    algorithm = str(inner.get("quant_algo") or "").upper()
    layers = inner.get("quantized_layers") if algorithm == MIXED else None
    return {"algorithm": algorithm, "layers": layers if isinstance(layers, Mapping) else {}}


def _inner(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings themselves, which hf_quant_config.json holds one level deeper."""
    inner = settings.get("quantization")
    return inner if isinstance(inner, Mapping) else settings


def read(settings: Mapping[str, Any], tensors: Tensors, label: str) -> list[Encoded]:
    """Return the quantised tensors.

    Raises:
        InputRefused: ``E_QUANT`` for an algorithm that is not decoded, and headers that contradict the settings.
    """
    said = normal(settings)
    # A name without wildcards stands for the module and for all modules inside it.
    key = "exclude_modules" if "exclude_modules" in _inner(settings) else "ignore"
    excluded = strings(_inner(settings), key, label)
    rule_of = left_out({name: rf"{translate(name)}|{re.escape(name)}\." for name in excluded}, label)
    found = []
    for weight, scale in _weights(tensors, label):
        rule = rule_of(weight.removesuffix(".weight"))
        if rule is not None:
            raise refuse(label, weight, f"quantised, and left out of quantisation by {rule!r}")
        found.append(_tensor(weight, scale, said, tensors, label))
    refuse_orphans(tensors, found, ENDINGS, label)
    return found


def _weights(tensors: Tensors, label: str) -> Iterator[tuple[str, str]]:
    """Yield every weight that has a scale or a quantised dtype, with the name of its scale.

    A stack of experts is a parameter of its module, with no `.weight` behind its name: its scale is
    `gate_up_proj_weight_scale`.
    """
    for name, stored in tensors.items():
        if name.endswith("_weight_scale"):
            yield name.removesuffix("_weight_scale"), name
        elif name.endswith(".weight") and (f"{name}_scale" in tensors or stored.dtype in ("U8", "F8_E4M3")):
            yield name, f"{name}_scale"
        elif name.endswith("pre_quant_scale"):
            raise refuse(label, name, "a scale of the inputs of a module is not decoded")


def _tensor(weight: str, scale: str, said: Mapping[str, Any], tensors: Tensors, label: str) -> Encoded:
    module = weight.removesuffix(".weight")
    scheme = _scheme(_algorithm(module, said, label), label, weight)
    parts = {"values": weight, "scale": scale}
    if scheme.values == "float":
        return scaled(scheme, tensors, parts, weight, label)
    if scheme.block == (1, 16):
        parts["tensor_scale"] = f"{scale}_2"
    # ModelOpt transposes the stacks that transformers stores input by output, quantises them, and transposes them back.
    return float4(scheme, tensors, parts, weight, label, by_rows=module == weight)


def _algorithm(module: str, said: Mapping[str, Any], label: str) -> str:
    """Return the algorithm of a module; if modules have their own, that of the longest enclosing name."""
    if said["algorithm"] != MIXED:
        return str(said["algorithm"])
    around = [".".join(module.split(".")[:n]) for n in range(module.count(".") + 1, 0, -1)]
    own = next((said["layers"][name] for name in around if name in said["layers"]), None)
    if own is None:
        raise refuse(label, module, "quantised, and quantized_layers does not say how")
    return str(own.get("quant_algo") if isinstance(own, Mapping) else own).upper()


def _scheme(algorithm: str, label: str, what: str) -> Scheme:
    if algorithm not in ALGORITHMS:
        missing = MISSING.get(algorithm, "its formula and tensor names")
        problem = f"quant_algo {algorithm!r} is not decoded; known: {', '.join(ALGORITHMS)}"
        raise refuse(label, what, f"{problem}; missing: {missing}")
    return ALGORITHMS[algorithm]
