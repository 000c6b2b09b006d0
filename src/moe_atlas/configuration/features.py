"""Find what a model computes by the words of configuration keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_atlas.models.mixers import GroupedQuery, Latent, Mixer, Rope
from moe_atlas.models.spec import FeedForward, LayerSpec, ModelSpec, MoESpec, RouterSpec

Seen = Callable[[ModelSpec], bool]


def layers(model: ModelSpec) -> Iterator[LayerSpec]:
    """Yield every layer, and every layer inside another layer."""
    for layer in model.layers:
        yield layer
        if layer.after is not None:
            yield layer.after


def mixers(model: ModelSpec) -> list[Mixer]:
    """Return the mixers of all layers that have a mixer."""
    return [layer.mixer for layer in layers(model) if layer.mixer is not None]


def attentions(model: ModelSpec) -> list[GroupedQuery | Latent]:
    """Return the mixers that are softmax attentions."""
    return [mixer for mixer in mixers(model) if isinstance(mixer, GroupedQuery | Latent)]


def moes(model: ModelSpec) -> list[MoESpec]:
    """Return every mixture of experts."""
    return [layer.moe for layer in layers(model) if layer.moe is not None]


def routers(model: ModelSpec) -> list[RouterSpec]:
    """Return every router."""
    return [moe.router for moe in moes(model)]


def perceptrons(model: ModelSpec) -> list[FeedForward]:
    """Return every perceptron: dense, routed or shared."""
    dense = [layer.dense for layer in layers(model)]
    return [
        one for one in (*dense, *(m.experts for m in moes(model)), *(m.shared for m in moes(model))) if one
    ]


def ropes(model: ModelSpec) -> list[Rope]:
    """Return every rotation of q and k."""
    return [rope for mixer in mixers(model) if (rope := getattr(mixer, "rope", None)) is not None]


def having(
    name: str, of: Callable[[ModelSpec], Any] = mixers, off: tuple[Any, ...] = (None, False, 0)
) -> Seen:
    """Return a test: does any part that `of` returns have the field `name` with a value that is not off?"""
    return lambda model: any(getattr(one, name, None) not in off for one in of(model))


def any_of(*seen: Seen) -> Seen:
    """Return a test that holds if any of these tests holds."""
    return lambda model: any(one(model) for one in seen)


def always(model: ModelSpec) -> bool:
    """Return True, for features of every decoder."""
    return True


biased = any_of(
    *(having(name) for name in ("qkv_bias", "out_bias", "bias", "conv_bias")),
    having("bias", perceptrons),
    having("linear_bias", routers),
    having("selection_bias", routers),
    lambda model: model.head_bias,
)
scaled = any_of(
    lambda model: (model.embed_scale, model.logit_scale, model.logit_divisor) != (1.0, 1.0, 1.0),
    having("residual_scale", layers, (1.0,)),
    having("output_scale", layers),
    having("expert_scale", routers),
    having("scale", routers, (1.0,)),
    *(having(name, moes, (1.0,)) for name in ("routed_scale", "output_scale")),
    *(having(name, mixers, (None, 1.0)) for name in ("value_scale", "q_multiplier", "kv_multiplier")),
)

FEATURES: Mapping[str, Seen] = {
    r"qk_?(layer)?norm|(query|key|[qk])_(layer)?norm": having("qk_norm"),
    r"norm_topk|renorm|normali[sz]e|route_norm": having("renormalise", routers),
    r"norm": always,
    r"rope|rotary|rotat|position|pos_emb|yarn|mscale": lambda model: bool(ropes(model)),
    r"slid|window|swa|local": having("window"),
    r"chunk": having("chunk"),
    r"sink": having("sinks"),
    r"expert_bias|rout\w*_bias|correction|aux_free": any_of(
        having("selection_bias", routers), having("linear_bias", routers)
    ),
    r"bias": biased,
    r"shared?_": having("shared", moes),
    r"gat(e|ing)|glu": any_of(having("output_gate"), having("gated", perceptrons)),
    r"tied?_|_tied?$": lambda model: model.tied,
    r"mla|latent|lora": lambda model: any(isinstance(mixer, Latent) for mixer in mixers(model)),
    r"mamba|ssm|state|conv|linear_att|delta|kda|recurren": lambda model: (
        len(attentions(model)) < len(mixers(model))
    ),
    r"clip|clamp|limit|cap": any_of(
        having("clip"), having("limit", perceptrons), lambda model: model.logit_cap is not None
    ),
    r"temperature|(attention|attn)_[msf]|query|softmax": always,
    r"scal|multiplier|factor|mup": scaled,
    r"group|topk|top_k": having("group_score", routers, ("none",)),
    r"parallel": having("block", layers, ("sequential",)),
    r"causal|mask|residual|^(use_|is_|has_|with_|enable_)?(moe|experts?|attention|attn|mlp|router)(_enabled)?$": always,
    r"^(moe|expert\w*)_(intermediate|ffn|hidden)|^(num|n)_(local_|routed_)?experts": always,
    r"dense": having("dense", layers),
    r"stream|hyper|hc_": lambda model: model.streams is not None,
    r"index": having("indexer"),
    r"identity|zero_expert": having("identity_experts", moes),
    r"weight_on_input|weighted_input": having("weight_on_input", moes),
}
"""Patterns of key names, each with the test whether a model computes the feature; the first match counts."""


def named(key: str, model: ModelSpec) -> bool:
    """Return whether a key's name speaks of a feature that the model computes."""
    return next((seen(model) for words, seen in FEATURES.items() if re.search(words, key)), False)


def _all(name: str, of: Callable[[ModelSpec], Any]) -> Callable[[ModelSpec], list[Any]]:
    return lambda model: [getattr(one, name) for one in of(model) if hasattr(one, name)]


def _qk_norm(model: ModelSpec) -> list[Any]:
    return [one.qk_norm is not None for one in mixers(model) if isinstance(one, GroupedQuery)]


def _bias(model: ModelSpec) -> list[Any]:
    return [one.qkv_bias if isinstance(one, GroupedQuery) else one.bias for one in attentions(model)]


def _score(model: ModelSpec) -> list[Any]:
    return [router.score for router in routers(model)]


STATED: Mapping[str, Callable[[ModelSpec], list[Any]]] = {
    "use_qk_norm": _qk_norm,
    "qk_layernorm": _qk_norm,
    "qkv_bias": _bias,
    "use_qkv_bias": _bias,
    "attention_bias": _bias,
    "mlp_bias": _all("bias", perceptrons),
    "use_sliding_window": lambda model: [having("window")(model)],
    "use_rotary_pos_emb": lambda model: [bool(ropes(model))],
    "norm_topk_prob": _all("renormalise", routers),
    "route_norm": _all("renormalise", routers),
    "scoring_func": _score,
    "score_func": _score,
    "score_function": _score,
    "routed_scaling_factor": _all("scale", routers),
    "rope_interleave": lambda model: [rope.pairing == "pairs" for rope in ropes(model)],
    "indexer_rope_interleave": lambda model: [
        one.indexer.pairing == "pairs"
        for one in mixers(model)
        if isinstance(one, Latent) and one.indexer is not None
    ],
    "router_dtype": _all("matmul", routers),
    "moe_router_dtype": _all("matmul", routers),
    "normalization_function": lambda model: [
        "rmsnorm" if model.final_norm.kind.startswith("rms") else "layernorm"
    ],
    "is_moe_layer": lambda model: [[layer.moe is not None for layer in model.layers]],
}
"""Keys that state a setting of the model: each with the values of this setting in every place of the model."""


def states(key: str, value: Any, model: ModelSpec, same: Callable[[Any, Any], bool]) -> bool:
    """Return whether a key states the setting that the model has in every place."""
    found = STATED[key](model) if key in STATED else []
    return bool(found) and all(same(one, value) for one in found)
