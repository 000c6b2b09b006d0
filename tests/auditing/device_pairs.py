"""Pairs of every layout and every option that brings tensors of another kind to a device, for tests of devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.oracle import tiny
from tests.auditing.test_properties import permute
from tests.checkpoint.test_quantised import fp8_model, gpt_oss
from tests.support import pairs, quantise

Pair = tuple[Path, Path | None, dict[str, Any]]


def moved(case: str, **options: Any) -> Callable[[Path], Pair]:
    """A pair of this family with every tensor moved."""

    def build(root: Path) -> Pair:
        base = tiny.save(case, root / "base", seed=3)
        return (
            base,
            pairs.variant(base, root / "tuned", pairs.jitter(0.2, lambda name: "A_log" not in name)),
            options,
        )

    return build


def against_itself(root: Path) -> Pair:
    """One checkpoint twice."""
    base = tiny.save("deepseek_v3", root / "base", seed=3)
    return base, base, {}


def alone(root: Path) -> Pair:
    """A baseline."""
    return tiny.save("qwen3_moe", root / "base", seed=3), None, {}


def relabelled(root: Path) -> Pair:
    """Experts in another order, router rows with them."""
    base = tiny.save("qwen3_moe", root / "base", seed=3)
    return base, pairs.variant(base, root / "tuned", permute([1], router=True, within=(0, 1))), {}


def quantised(root: Path) -> Pair:
    """A base in bfloat16, and the same as fp8 blocks."""
    return tiny.save("deepseek_v3", root / "base", dtype=torch.bfloat16), fp8_model(root / "tuned"), {}


def quantised_stack(root: Path) -> Pair:
    """Stacked experts in mxfp4, and the same with other roundings."""
    base = gpt_oss(root / "base")
    tuned = tiny.save("gpt_oss", root / "plain", dtype=torch.bfloat16, intermediate_size=32, seed=4)

    def encode(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return None
        blocks, scales = quantise.mxfp4(tensor.transpose(1, 2))
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    return base, quantise.rewrite(tuned, encode, {"quant_method": "mxfp4"}), {}


BUILD: dict[str, Callable[[Path], Pair]] = {
    "against itself": against_itself,
    "alone": alone,
    "split": moved("olmoe"),
    "groups and a dense layer": moved("deepseek_v3", dtype="bfloat16"),
    "stacked": moved("gpt_oss"),
    "weighted on the input": moved("llama4_text"),
    "convolutions": moved("qwen3_next"),
    "relabelled": relabelled,
    "quantised": quantised,
    "quantised stack": quantised_stack,
    "native router": moved("qwen3_moe", router="native", dtype="bfloat16"),
    "another order": moved("qwen3_moe", noise_floor="order"),
    "another dtype": moved("qwen3_moe", noise_floor="bfloat16", chart_maps=2),
}


def probe(root: Path) -> Path:
    """What they are measured on: every second token of a few windows, all experts."""
    return pairs.probe(
        root / "probe", documents=4, evaluation={"experts": "all", "token_stride": 2, "quantile": 0.9}
    )
