"""Tiny randomised transformers models on disk, and what transformers itself computes from them.

`CASES` names every variant that is tested. `save` writes one as an ordinary checkpoint; `oracle` runs the
reference on a saved checkpoint with eager attention and eager experts, and records every routing decision.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Mistral4ForCausalLM
from transformers.utils import logging

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.loading.registry import resolve
from moe_atlas.models.spec import ModelSpec

logging.set_verbosity_error()
logging.disable_progress_bar()

ABSENT = object()
"""Marks a key of `BASE` that a case leaves out."""
BASE: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
QWEN = {"moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}
DEEPSEEK = {
    "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 1.7,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1, "q_lora_rank": 10, "kv_lora_rank": 14, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6, "v_head_dim": 10, "num_hidden_layers": 3,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10.0,
    "mscale": 0.9, "mscale_all_dim": 0.7, "beta_fast": 1.0, "beta_slow": 0.32,
}  # fmt: skip
"""The ramp's ends lie so that half as much again of any parameter moves one of them over a whole plane."""

QWEN2 = QWEN | {"norm_topk_prob": False, "shared_expert_intermediate_size": 20}
MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14}
OLMOE = {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 14, "norm_topk_prob": False}
DEEPSEEK2 = DEEPSEEK | {
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
    "first_k_dense_replace": 1,
}

SIGMOID = {
    "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 1.7, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "num_hidden_layers": 3, "head_dim": 12,
}  # fmt: skip
MIXED = {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}
ROUTED = {key: value for key, value in QWEN.items() if key != "norm_topk_prob"}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
WHOLE = {
    "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
LINEAR = ["linear_attention", "full_attention", "linear_attention"]
DELTA = {
    "shared_expert_intermediate_size": 10, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 6, "linear_value_head_dim": 5, "linear_conv_kernel_dim": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
INDEX = {"index_topk": 9, "index_head_dim": 12, "index_n_heads": 3}
DEEPSEEK4 = {
    "intermediate_size": ABSENT, "num_key_value_heads": 1, "num_hidden_layers": 3, "moe_intermediate_size": 12,
    "head_dim": 12, "q_lora_rank": 10, "num_experts_per_tok": 3, "n_routed_experts": 8, "hc_mult": 3,
    "hc_sinkhorn_iters": 2, "swiglu_limit": 0.8, "sliding_window": 6, "o_groups": 2, "o_lora_rank": 5,
    "index_n_heads": 3, "index_head_dim": 8, "index_topk": 2, "partial_rotary_factor": 0.5,
    "rope_theta": 300.0, "compress_rope_theta": 90.0, "mlp_layer_types": ["moe"] * 3,
    "compress_rates": {"compressed_sparse_attention": 3, "heavily_compressed_attention": 5},
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
}  # fmt: skip
GRANITE = {
    "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 1.5,
}  # fmt: skip
GEMMA4 = {
    "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 12, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6, "head_dim": 8,
    "global_head_dim": 12, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision",
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 90.0, "partial_rotary_factor": 0.4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}  # fmt: skip
BY_TYPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", QWEN | {"head_dim": 10}),
    "qwen3_moe-raw-weights": ("qwen3_moe", QWEN | {"norm_topk_prob": False, "attention_bias": True}),
    "qwen3_moe-mixed-layers": (
        "qwen3_moe",
        QWEN | {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1],
        "tie_word_embeddings": True},
    ),
    "qwen3_moe-window": ("qwen3_moe", QWEN | {"use_sliding_window": True, "sliding_window": 5}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK),
    "deepseek_v3-yarn": ("deepseek_v3", DEEPSEEK | {"rope_parameters": YARN, "rms_norm_eps": 1e-5}),
    "deepseek_v3-plain": (
        "deepseek_v3",
        DEEPSEEK | {
            "n_group": 1, "topk_group": 1, "q_lora_rank": None, "norm_topk_prob": False,
            "rope_interleave": False,
            "attention_bias": True, "first_k_dense_replace": 0, "num_hidden_layers": 2,
        },
    ),
    "qwen2_moe": ("qwen2_moe", QWEN2),
    "qwen2_moe-renormalised": (
        "qwen2_moe",
        QWEN2 | {"norm_topk_prob": True, "qkv_bias": False, "num_hidden_layers": 3, "mlp_only_layers": [0]},
    ),
    "qwen2_moe-window": (
        "qwen2_moe",
        QWEN2 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3, "num_hidden_layers": 4},
    ),
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral-window": ("mixtral", MIXTRAL | {"sliding_window": 6, "head_dim": 12}),
    "olmoe": ("olmoe", OLMOE),
    "olmoe-clipped": (
        "olmoe", OLMOE | {"clip_qkv": 0.8, "norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 4}
    ),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK2),
    "deepseek_v2-lite": (
        "deepseek_v2",
        DEEPSEEK2 | {
            "topk_method": "greedy", "n_group": None, "topk_group": None, "q_lora_rank": None, "mlp_bias": True,
            "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "first_k_dense_replace": 0,
        },
    ),
    "deepseek_v2-yarn": ("deepseek_v2", DEEPSEEK2 | {"rope_parameters": YARN, "attention_bias": True}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "sliding_window": 6,
            "head_dim": 8, "swiglu_limit": 1.0, "swiglu_alpha": 1.3,
        },
    ),
    "glm4_moe": ("glm4_moe", SIGMOID | {"use_qk_norm": True, "attention_bias": True}),
    "glm4_moe-air": ("glm4_moe", SIGMOID | {"use_qk_norm": False, "n_group": 4, "topk_group": 2}),
    "solar_open": ("solar_open", SIGMOID | {"attention_bias": True, "first_k_dense_replace": 0}),
    "dots1": (
        "dots1", SIGMOID | {"sliding_window": 5, "layer_types": SLIDING, "n_group": 2, "topk_group": 1}
    ),
    "minimax_m2": (
        "minimax_m2",
        {
            "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "head_dim": 12,
            "rotary_dim": 6,
        },
    ),
    "granitemoe": (
        "granitemoe",
        {
            "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 1.5, "attention_bias": True,
        },
    ),
    "granitemoeshared": (
        "granitemoeshared",
        {
            "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 1.5,
            "shared_intermediate_size": 10, "tie_word_embeddings": True,
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            "num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size": 12, "intermediate_size_mlp": 20,
            "num_hidden_layers": 5, "head_dim": 8, "attention_chunk_size": 7, "floor_scale": 5, "attn_scale": 0.3,
            "interleave_moe_layer_step": 2, "no_rope_layer_interval": 3,
        },
    ),
    "llama4_text-scaled": (
        "llama4_text",
        {
            "num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size": 12, "intermediate_size_mlp": 20,
            "head_dim": 16, "use_qk_norm": False, "attention_chunk_size": 7,
            "attn_temperature_tuning": False, "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16, "rope_theta": 500.0,
            },
        },
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 12, "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1, "num_hidden_layers": 3, "use_bias": False, "tie_word_embeddings": True,
        },
    ),
    "ernie4_5_moe-biased": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 12, "moe_num_shared_experts": 0,
            "moe_layer_start_index": 0, "moe_layer_end_index": 2, "moe_layer_interval": 2, "num_hidden_layers": 4,
            "use_bias": True,
        },
    ),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        {
            "num_experts": 8, "moe_topk": 3, "intermediate_size": 12, "head_dim": 12, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 100.0, "rope_theta": 10000.0, "factor": 1.0},
        },
    ),
    "phimoe": (
        "phimoe",
        {
            "num_local_experts": 8, "intermediate_size": 12, "attention_bias": True, "lm_head_bias": True,
            "router_jitter_noise": 0.15, "sliding_window": 9,
        },
    ),
    "phimoe-longrope": (
        "phimoe",
        {
            "num_local_experts": 8, "intermediate_size": 12,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0, 1.1, 1.3, 1.6],
                "long_factor": [1.0, 2.0, 3.0, 4.0], "short_mscale": 1.2, "long_mscale": 1.4, "factor": 4.0,
                "original_max_position_embeddings": 48,
            },
        },
    ),
    "flex_olmo": ("flex_olmo", OLMOE | {"num_experts": 7, "norm_topk_prob": True}),
    "afmoe": (
        "afmoe",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "num_shared_experts": 2,
            "route_scale": 1.6, "num_hidden_layers": 5, "sliding_window": 6, "mup_enabled": True, "head_dim": 12,
        },
    ),
    "exaone_moe": (
        "exaone_moe",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "num_shared_experts": 2,
            "n_group": 4, "topk_group": 2, "num_hidden_layers": 5, "sliding_window": 6, "head_dim": 12,
        },
    ),
    "hy_v3": (
        "hy_v3",
        MIXED | {
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "num_shared_experts": 2,
            "head_dim": 12,
        },
    ),
    "glm4_moe_lite": ("glm4_moe_lite", DEEPSEEK | MIXED | {"first_k_dense_replace": ABSENT}),
    "axk1": ("axk1", DEEPSEEK | MIXED | {"first_k_dense_replace": ABSENT}),
    "laguna": (
        "laguna",
        ROUTED | MIXED | {
            "shared_expert_intermediate_size": 10, "layer_types": SLIDING, "sliding_window": 6, "head_dim": 8,
            "rope_parameters": BY_TYPE, "num_attention_heads_per_layer": [4, 6, 2], "moe_routed_scaling_factor": 1.4,
        },
    ),
    "laguna-elementwise": (
        "laguna",
        ROUTED | MIXED | {
            "shared_expert_intermediate_size": 10, "layer_types": SLIDING, "sliding_window": 6, "head_dim": 8,
            "rope_parameters": BY_TYPE, "gating": "per-element", "attention_bias": True,
        },
    ),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        SIGMOID | MIXED | {
            "layer_types": SLIDING, "sliding_window": 6, "head_dim": 12, "v_head_dim": 6, "rope_parameters": BY_TYPE,
            "first_k_dense_replace": ABSENT, "n_shared_experts": ABSENT,
        },
    ),
    "mellum": (
        "mellum",
        QWEN | MIXED | {"layer_types": SLIDING, "sliding_window": 6, "head_dim": 8, "rope_parameters": WHOLE},
    ),
    "cohere2_moe": (
        "cohere2_moe",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "head_dim": 8, "sliding_window": 6,
            "num_hidden_layers": 4, "first_k_dense_replace": 1, "prefix_dense_intermediate_size": 20,
            "num_shared_experts": 2, "logit_scale": 0.5, "tie_word_embeddings": True,
        },
    ),
    "cohere2_moe-sigmoid": (
        "cohere2_moe",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 12, "head_dim": 8, "sliding_window": 6,
            "num_hidden_layers": 4, "expert_selection_fn": "sigmoid",
            "logit_scale": 1.0, "num_shared_experts": 1,
            "shared_expert_combination_strategy": "sum", "rms_norm_eps": 1e-5, "attention_bias": True,
        },
    ),
    "dbrx": (
        "dbrx",
        {
            "intermediate_size": ABSENT, "hidden_size": ABSENT, "num_attention_heads": ABSENT,
            "num_key_value_heads": ABSENT, "num_hidden_layers": ABSENT, "max_position_embeddings": ABSENT,
            "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.8, "rope_theta": 700.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
            "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 8, "moe_top_k": 3, "hidden_size": 32},
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        QWEN | DELTA | {"num_hidden_layers": 3, "layer_types": LINEAR, "mlp_only_layers": [1]},
    ),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", ROUTED | DELTA | {"num_hidden_layers": 3, "layer_types": LINEAR}),
    "lfm2_moe": (
        "lfm2_moe",
        ROUTED | {
            "num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "num_dense_layers": 1, "conv_bias": True, "routed_scaling_factor": 1.3, "norm_topk_prob": True,
        },
    ),
    "lfm2_moe-unbiased": (
        "lfm2_moe",
        ROUTED | {
            "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 0,
            "use_expert_bias": False, "norm_topk_prob": False, "tie_word_embeddings": True,
        },
    ),
    "deepseek_v32": ("deepseek_v32", DEEPSEEK | INDEX),
    "deepseek_v32-yarn": ("deepseek_v32", DEEPSEEK | INDEX | {"rope_parameters": YARN, "index_topk": 64}),
    "deepseek_v4": ("deepseek_v4", DEEPSEEK4),
    "deepseek_v4-by-token": ("deepseek_v4", DEEPSEEK4 | {"mlp_layer_types": ["hash_moe", "moe", "hash_moe"]}),
    "deepseek_v4-yarn": (
        "deepseek_v4",
        DEEPSEEK4 | {
            "num_hidden_layers": 2, "mlp_layer_types": ["moe"] * 2, "compress_rope_theta": 10.0,
            "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
            "rope_parameters": {
                "main": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
                "compress": {
                    **{key: value for key, value in YARN.items() if "mscale" not in key}, "partial_rotary_factor": 0.5,
                    "beta_fast": 0.805, "beta_slow": 0.4,
                },
            },
        },
    ),
    "glm_moe_dsa": ("glm_moe_dsa", DEEPSEEK | MIXED | INDEX | {"indexer_types": ["full", "full", "full"]}),
    "glm_moe_dsa-shared": (
        "glm_moe_dsa",
        DEEPSEEK | INDEX | {"indexer_types": ["full", "shared", "shared"], "index_topk": 64},
    ),
    "gemma4_text": (
        "gemma4_text",
        GEMMA4 | {
            "attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma4_text-biased": ("gemma4_text", GEMMA4 | {"attention_bias": True}),
    "longcat_flash": (
        "longcat_flash",
        {
            "num_hidden_layers": ABSENT, "intermediate_size": ABSENT, "num_layers": 2, "num_key_value_heads": 4,
            "ffn_hidden_size": 20, "expert_ffn_hidden_size": 12, "n_routed_experts": 6, "zero_expert_num": 3,
            "moe_topk": 3, "routed_scaling_factor": 1.7, "q_lora_rank": 10, "kv_lora_rank": 14, "qk_rope_head_dim": 8,
            "head_dim": 8, "qk_nope_head_dim": 6, "v_head_dim": 10, "attention_bias": True,
        },
    ),
    "granitemoe_swa": (
        "granitemoe_swa",
        GRANITE | {
            "num_hidden_layers": 3, "layer_types": SLIDING, "sliding_window": 6, "attention_bias": True,
            "layer_rope_theta": [500.0, 0, 90.0],
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        GRANITE | {
            "num_hidden_layers": 3, "layer_types": LINEAR, "shared_intermediate_size": 10,
            "position_embedding_type": "rope", "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 6,
            "mamba_d_head": 8, "mamba_d_conv": 3, "mamba_expand": 1, "mamba_chunk_size": 64, "mamba_proj_bias": True,
            "time_step_limit": [0.6, float("inf")],
        },
    ),
    "kimi_linear": (
        "kimi_linear",
        {key: value for key, value in DEEPSEEK.items() if key not in ("first_k_dense_replace", "n_routed_experts")} | {
            "num_local_experts": 8, "layer_types": LINEAR, "mlp_layer_types": ["sparse"] * 3, "linear_head_dim": 6,
            "linear_num_heads": 3, "linear_conv_kernel_dim": 3, "q_lora_rank": None,
        },
    ),
    "mistral4": (
        "mistral4",
        DEEPSEEK | {
            "qk_nope_head_dim": 8,
            "rope_parameters": YARN | {"partial_rotary_factor": 0.5, "llama_4_scaling_beta": 0.3,
                                       "original_max_position_embeddings": 5, "beta_fast": 0.3125, "beta_slow": 0.1},
        },
    ),
    "aria_text": (
        "aria_text",
        {
            "moe_num_experts": 8, "moe_topk": 3, "moe_num_shared_experts": 2, "intermediate_size": 12, "head_dim": 10,
            "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu",
        },
    ),
    "jamba": (
        "jamba",
        OLMOE | {
            "num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "mamba_d_state": 6, "mamba_d_conv": 3, "mamba_expand": 2, "mamba_dt_rank": 5,
            "mamba_proj_bias": True, "head_dim": 10, "norm_topk_prob": ABSENT,
        },
    ),
    "minimax": (
        "minimax",
        MIXTRAL | {
            "num_hidden_layers": 3, "layer_types": LINEAR, "head_dim": 10, "block_size": 7, "sliding_window": 6,
            "full_attn_alpha_factor": 1.3, "full_attn_beta_factor": 0.7, "linear_attn_alpha_factor": 0.8,
            "linear_attn_beta_factor": 1.4, "mlp_alpha_factor": 1.2, "mlp_beta_factor": 0.6,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            "num_hidden_layers": ABSENT, "layers_block_type": ["mamba", "moe", "attention", "mlp", "moe"],
            "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
            "moe_shared_expert_intermediate_size": 10, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7,
            "head_dim": 8, "ssm_state_size": 6, "mamba_num_heads": 4, "mamba_head_dim": 5, "n_groups": 2,
            "conv_kernel": 3, "time_step_min": 0.6, "chunk_size": 16,
        },
    ),
}  # fmt: skip

UNLISTED = {"mistral4": Mistral4ForCausalLM}
"""Models that the reference's own list of language models leaves out."""
SLOW: frozenset[str] = frozenset()
"""Cases that only `make parity` runs."""
FAST = [case for case in CASES if case not in SLOW]
INEXACT: dict[str, str] = {
    "lfm2_moe-unbiased": "sigmoid scores in bfloat16 tie on every probe, and the reference breaks ties arbitrarily",
    "granitemoe_swa": "the reference scales the attention output by the rounded share of the sink",
}
"""Cases that are not bit-exact in bfloat16, with the reason."""


@dataclass
class Oracle:
    """The reference's logits [W, S, V] float32, and its sets and combine weights [T, K] of every routed layer."""

    logits: Tensor
    sets: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)


def tokens(windows: int = 2, length: int = 24, vocab: int = 48, seed: int = 0) -> Tensor:
    """Token ids, int64 [W, S]."""
    return torch.randint(0, vocab, (windows, length), generator=torch.Generator().manual_seed(seed))


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter and stored buffer a random value that matters: gains near 1, biases near 0.3."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name]
        if name.endswith("tid2eid"):  # a set of experts for every token id
            config: Any = model.config
            order = torch.rand(len(tensor), config.n_routed_experts, generator=generator).argsort(-1)
            tensor.copy_(order[:, : tensor.shape[1]])
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2:
            value = noise * 1.5 / tensor.shape[-1] ** 0.5
        else:
            value = 0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        tensor.copy_(value.to(tensor.dtype))


def save(
    case: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """Write one case as a checkpoint and return its folder."""
    model_type, options = CASES[case]
    merged = {key: value for key, value in (BASE | options | changes).items() if value is not ABSENT}
    config = AutoConfig.for_model(model_type, **merged)
    kind = reference_class(model_type)
    model = (kind._from_config if model_type in UNLISTED else kind.from_config)(config).eval()
    randomise(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if dtype != torch.float32:  # reload, so that what the reference keeps in float32 stays float32 on disk
        kind.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return folder


def config_of(case: str) -> dict[str, Any]:
    """The configuration of one case as its class writes it."""
    model_type, options = CASES[case]
    merged = {key: value for key, value in (BASE | options).items() if value is not ABSENT}
    written: dict[str, Any] = json.loads(
        AutoConfig.for_model(model_type, **merged).to_json_string(use_diff=False)
    )
    return written


def reference_class(model_type: str) -> Any:
    """What builds the reference model."""
    return UNLISTED.get(model_type, AutoModelForCausalLM)


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The reference model with eager attention and eager experts."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    kind = reference_class(model_type)
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.set_experts_implementation("eager")
    loaded: nn.Module = model
    return loaded


@torch.no_grad()
def oracle(model: nn.Module, tokens_WS: Tensor) -> Oracle:
    """Run the reference and record its routers."""
    result = Oracle(torch.empty(0))
    handles = [m.register_forward_hook(_recorder(result, name)) for name, m in model.named_modules()]
    result.logits = model(tokens_WS, use_cache=False).logits.float()
    for handle in handles:
        handle.remove()
    return result


def _recorder(result: Oracle, name: str) -> Any:
    layer = re.search(r"\.(?:layers|blocks)\.(\d+)\.", name + ".")

    def record(module: nn.Module, args: Any, out: Any) -> None:
        found = _choice(out) or _choice((None, *args[:0:-1]))
        if layer and found:
            result.weights[int(layer[1])], result.sets[int(layer[1])] = found[0].float(), found[1]

    return record


def _choice(out: Any) -> tuple[Tensor, Tensor] | None:
    """Weights and ids of a decision: a router's output, or (None, weights, ids) from an expert module's input."""
    if not isinstance(out, tuple) or not all(isinstance(item, Tensor) for item in out[1:]):
        return None
    if len(out) == 3 and out[2].dtype == torch.int64 and out[1].shape == out[2].shape:
        return out[1], out[2]
    if len(out) == 2 and isinstance(out[0], Tensor) and out[0].ndim == 2 and out[0].shape == out[1].shape:
        top = out[1].topk(1).indices  # a top-1 router that scatters its score
        return out[0].gather(-1, top), top
    return None


def open_tiny(folder: Path) -> tuple[ModelSpec, Reader]:
    """Spec and reader of a saved tiny model."""
    checkpoint = open_checkpoint(folder)
    return resolve(checkpoint), Reader(checkpoint)
