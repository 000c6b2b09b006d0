"""Find the quantised tensors of a checkpoint from its configuration and its headers.

The configuration states the format and its block or group size. The names tell which tensors are stored in that format.
The headers must agree with both. A tensor that these do not explain is refused; nothing is guessed from a shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from moe_atlas.checkpoint.quantised.encoding import Encoded
from moe_atlas.checkpoint.quantised.parts import Tensors
from moe_atlas.checkpoint.quantised.readers import awq, compressed, fp8, gptq, mlx, modelopt, mxfp4
from moe_atlas.checkpoint.quantised.schemes import refuse

SECTIONS = ("text_config", "llm_config", "language_config")
KEYS = ("quantization_config", "compression_config")
MLX_KEY = "quantization"
TELLTALE = (
    "weight_scale_inv", "weight_scale", "_scale_inv", "weight_packed", "_blocks", "qweight", "qzeros", "g_idx",
    "weight_scale_2", "weight_global_scale", "quant_state.bitsandbytes__nf4", "absmax",
)  # fmt: skip
"""Endings of names that only quantised checkpoints have."""
MISSING = {
    "aqlm": "its additive codebooks",
    "auto-round": "its packing formats; AutoRound also exports gptq and awq (--format auto_gptq, auto_awq)",
    "bitnet": "its ternary packing",
    "bitsandbytes": "its nested codebooks",
    "eetq": "its layout of 8-bit integers for one kernel",
    "fbgemm_fp8": "its per-row scales",
    "fp_quant": "its rotations",
    "higgs": "its rotations and grids",
    "hqq": "its packing and its quantised scales",
    "quanto": "its tensor subclasses",
    "quark": "its export layouts",
    "spqr": "its sparse outliers",
    "torchao": "its tensor subclasses",
    "vptq": "its vector codebooks and residuals",
}
"""Methods that are not decoded, with what decoding them would need."""

Settings = Mapping[str, Any]
READERS: Mapping[str, Callable[[Settings, Tensors, str], Iterable[Encoded]]] = {
    "awq": awq.read,
    "compressed-tensors": compressed.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "mlx": mlx.read,
    "modelopt": modelopt.read,
    "mxfp4": mxfp4.read,
}
"""The function that lists the tensors of each method."""


def detect(
    config: Settings, tensors: Tensors, label: str, beside: Settings | None = None
) -> dict[str, Encoded]:
    """Return every quantised tensor by its name in an unquantised checkpoint.

    Args:
        config: the content of config.json.
        tensors: every stored tensor by name.
        label: the checkpoint, for messages.
        beside: the content of hf_quant_config.json; None without that file.

    Raises:
        InputRefused: ``E_QUANT`` for a format that is not decoded, a header that contradicts the configuration, or
            quantised tensors that no configuration explains.
    """
    settings = _settings(config, beside, label)
    if settings is None:
        _refuse_telltale(tensors, label)
        return {}
    method = _method(settings)
    if method not in READERS:
        missing = MISSING.get(method, "its formula and tensor names")
        problem = f"quantisation not implemented; known: {', '.join(sorted(READERS))}; missing: {missing}"
        step = "audit a checkpoint that is not quantised, or add the format in moe_atlas/checkpoint/quantised"
        raise refuse(label, f"quant_method = {method!r}", problem, step)
    found = {entry.name: entry for entry in READERS[method](settings, tensors, label)}
    for name, entry in found.items():
        if name in tensors and name not in entry.parts.values():
            problem = f"stored twice, as it is and quantised ({entry.parts['values']}), and loaders disagree"
            raise refuse(label, name, problem)
    return found


def _refuse_telltale(tensors: Tensors, label: str) -> None:
    stray = next((name for name in tensors if name.endswith(TELLTALE)), None)
    if stray is not None:
        problem = "looks like a part of a quantised tensor, and config.json has no quantization_config"
        step = "add the quantization_config that the checkpoint was written with"
        raise refuse(label, stray, problem, step)


def _settings(config: Settings, beside: Settings | None, label: str) -> Settings | None:
    """Return the quantisation block from any place where a configuration keeps it; two blocks must agree."""
    found = list(_blocks(config, beside))
    for other in found[1:]:
        if _said(other) != _said(found[0]):
            places = "config.json twice" if beside is None else "config.json and hf_quant_config.json"
            problem = f"stands in {places}, each time otherwise, and loaders disagree about which holds"
            step = "keep the one that the checkpoint was written with"
            raise refuse(label, "quantization_config", problem, step)
    return found[0] if found else None


def _blocks(config: Settings, beside: Settings | None) -> Iterator[Settings]:
    places = [config, *(config[name] for name in SECTIONS if isinstance(config.get(name), dict))]
    for place in places:
        yield from (place[key] for key in KEYS if isinstance(place.get(key), dict))
    if isinstance(config.get(MLX_KEY), dict):
        yield config[MLX_KEY]
    if beside is not None:
        yield beside


def _said(settings: Settings) -> Any:
    """Return what must agree in two blocks: everything, or for ModelOpt, which has two spellings, the normal form."""
    return modelopt.normal(settings) if _method(settings) == "modelopt" else settings


def _method(settings: Settings) -> str:
    """Return the method that a block names, or else the method to which its other keys belong."""
    producer = settings.get("producer")
    made_by = producer.get("name") if isinstance(producer, dict) else None
    if settings.get("quant_method") is not None:
        return str(settings["quant_method"])
    if made_by == "modelopt" or "quant_algo" in settings:
        return "modelopt"
    if "load_in_4bit" in settings or "load_in_8bit" in settings:
        return "bitsandbytes"
    return "mlx" if {"bits", "group_size"} <= settings.keys() else "None"
