"""Find the spec of a checkpoint: which family reads which `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.configuration.config import DISAGREE, KEEP, Config, agreed
from moe_atlas.configuration.parts import Blueprint
from moe_atlas.errors import InputRefused
from moe_atlas.families import (
    afmoe,
    aria,
    bailing_moe,
    cohere2_moe,
    dbrx,
    deepseek,
    deepseek_v2,
    deepseek_v3,
    deepseek_v4,
    dots1,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    gemma4,
    glm4_moe,
    gpt_oss,
    granitemoe,
    hunyuan_v1_moe,
    hy_v3,
    jamba,
    kimi_linear,
    laguna,
    lfm2_moe,
    llama4,
    longcat_flash,
    mellum,
    mimo_v2_flash,
    minimax,
    minimax_m2,
    mistral4,
    mixtral,
    nemotron_h,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
    qwen3_next,
)
from moe_atlas.loading.bind import Stored, bind
from moe_atlas.loading.unsupported import TEXT_SECTIONS, refusal, section, unknown
from moe_atlas.models.spec import ModelSpec

FAMILIES: Mapping[str, Callable[[Config], Blueprint]] = {
    "afmoe": afmoe.build,
    "aria_text": aria.build,
    "axk1": deepseek_v3.build_axk1,
    "bailing_moe": bailing_moe.build,
    "bailing_moe_v2": bailing_moe.build,
    "cohere2_moe": cohere2_moe.build,
    "dbrx": dbrx.build,
    "deepseek": deepseek.build,
    "deepseek_v2": deepseek_v2.build,
    "deepseek_v3": deepseek_v3.build,
    "deepseek_v32": deepseek_v3.build_sparse,
    "deepseek_v4": deepseek_v4.build,
    "dots1": dots1.build,
    "ernie4_5_moe": ernie4_5_moe.build,
    "ernie4_5_vl_moe_text": ernie4_5_moe.build_vision,
    "exaone_moe": exaone_moe.build,
    "flex_olmo": flex_olmo.build,
    "gemma4_text": gemma4.build,
    "glm4_moe": glm4_moe.build,
    "glm4_moe_lite": deepseek_v3.build_typed,
    "glm4v_moe_text": glm4_moe.build_vision,
    "glm_moe_dsa": deepseek_v3.build_glm,
    "gpt_oss": gpt_oss.build,
    "granitemoe": granitemoe.build,
    "granitemoe_swa": granitemoe.build_sliding,
    "granitemoehybrid": granitemoe.build_hybrid,
    "granitemoeshared": granitemoe.build,
    "hunyuan_v1_moe": hunyuan_v1_moe.build,
    "hy_v3": hy_v3.build,
    "jamba": jamba.build,
    "kimi_k2": deepseek_v3.build,
    "kimi_linear": kimi_linear.build,
    "laguna": laguna.build,
    "lfm2_moe": lfm2_moe.build,
    "llama4_text": llama4.build,
    "longcat_flash": longcat_flash.build,
    "mellum": mellum.build,
    "mimo_v2_flash": mimo_v2_flash.build,
    "minimax": minimax.build,
    "minimax_m2": minimax_m2.build,
    "mistral4": mistral4.build,
    "mixtral": mixtral.build,
    "nemotron_h": nemotron_h.build,
    "olmoe": olmoe.build,
    "phimoe": phimoe.build,
    "qwen2_moe": qwen2_moe.build,
    "qwen3_5_moe_text": qwen3_next.build_typed,
    "qwen3_moe": qwen3_moe.build,
    "qwen3_next": qwen3_next.build,
    "qwen3_omni_moe_text": qwen3_moe.build_omni,
    "qwen3_vl_moe_text": qwen3_moe.build_vision,
    "solar_open": glm4_moe.build_solar,
}
"""`model_type` to the function that reads its configuration."""

TIED = "tie_word_embeddings"
DTYPE = ("dtype", "torch_dtype")
OWN = ("model_type", TIED, *DTYPE)
"""Keys that apply only to the level of the configuration at which they stand."""
QUANTISATION = ("quantization_config", "compression_config", "quantization")
"""Keys that opening the checkpoint reads: families do not know how a tensor is stored."""


class CheckpointLike(Protocol):
    """An opened checkpoint, as far as reading its configuration uses it."""

    @property
    def label(self) -> str:
        """The name that the user gave the checkpoint."""

    @property
    def config(self) -> dict[str, Any]:
        """The parsed config.json."""

    @property
    def logical(self) -> Mapping[str, Stored]:
        """Tensors by name; a quantised tensor stands in its decoded form."""


def resolve(checkpoint: TensorSource, accepted: Mapping[str, Any] = MappingProxyType({})) -> ModelSpec:
    """Recognise the architecture of a checkpoint and bind its tensors.

    Args:
        checkpoint: an opened checkpoint.
        accepted: keys that config.json may hold with these values although nothing reads them; the spec records the
            keys that config.json does hold.

    Raises:
        InputRefused: `E_FAMILY` for an unknown architecture, a config key that nothing reads, a missing tensor, a
            wrong shape, a tensor that nothing reads, a stored head that differs from the embedding to which
            config.json ties it, or a table that names an expert which the layer does not have.
    """
    _, blueprint = read_config(checkpoint, accepted)
    spec = bind(blueprint, checkpoint.logical, checkpoint.label)
    if blueprint.model.tied and not spec.tied:
        from moe_atlas.loading.tied_head import (
            require_equal,  # imports torch; the rest of this module must not
        )

        require_equal(checkpoint, spec)
    if any(layer.moe and layer.moe.router.table is not None for layer in spec.layers):
        from moe_atlas.loading.lookup_tables import require_experts

        require_experts(checkpoint, spec)
    return spec


def read_config(
    checkpoint: CheckpointLike, accepted: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, Blueprint]:
    """Return the family's name and the blueprint that it makes of the configuration, without reading any tensor.

    Raises:
        InputRefused: `E_FAMILY` for an unknown architecture, a config key that nothing reads, or a configuration that
            describes two different language models.
    """
    refused = refusal(checkpoint.config, checkpoint.logical, checkpoint.label)
    if refused is not None:
        raise refused
    read = [_read(checkpoint, accepted, *place) for place in _language_models(checkpoint.config)]
    if not read:
        raise unknown(checkpoint.config, checkpoint.logical, checkpoint.label)
    (place, family, blueprint), *others = read
    for other, *found in others:
        if found != [family, blueprint]:
            where = f"{checkpoint.label}: config.json: {place} and {other}"
            raise InputRefused("E_FAMILY", where, f"two language models that differ, {DISAGREE}", KEEP)
    return family, blueprint


def _language_models(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield each part of a configuration that describes a known language model: its place, its keys, the outer keys."""
    if _known(config) is not None:
        others = [path[0] for path in TEXT_SECTIONS if _known(section(config, path)) is not None]
        yield "the top level", {key: value for key, value in config.items() if key not in others}, {}
    for path in TEXT_SECTIONS:
        inner = _known(section(config, path))
        if inner is not None:
            around = {
                key: value for end in range(len(path)) for key, value in section(config, path[:end]).items()
            }
            outer = {key: value for key, value in around.items() if key not in OWN}
            # The outer model owns the head, so the outer level decides whether the head is tied.
            decided = {} if around.get(TIED) is None else {TIED: around[TIED]}
            yield ".".join(path), {**inner, **decided}, outer


def _known(value: Any) -> Mapping[str, Any] | None:
    """Return this level of a configuration if it describes a known language model, else None."""
    family = value.get("model_type") if isinstance(value, Mapping) else None
    return value if isinstance(family, str) and family in FAMILIES else None


def _read(
    checkpoint: CheckpointLike,
    accepted: Mapping[str, Any],
    place: str,
    values: Mapping[str, Any],
    outer: Mapping[str, Any],
) -> tuple[str, str, Blueprint]:
    """Return place, family and blueprint of one language model that a configuration describes."""
    values = {key: value for key, value in values.items() if key not in QUANTISATION}
    family = values["model_type"]
    file = f"{FAMILIES[family].__module__.replace('.', '/')}.py"
    where = f"{checkpoint.label}: config.json"
    for level in (checkpoint.config, values):
        agreed(*((Config(level, where), name) for name in DTYPE), default=None, null=None)
    config = Config(values, where, file, f"{place}." if outer else "", outer)
    blueprint = FAMILIES[family](config)
    used = config.refuse_unread(blueprint.model, accepted)
    return place, family, replace(blueprint, model=replace(blueprint.model, accepted=used))
