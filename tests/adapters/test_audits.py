"""An audit of a base and an adapter gives the receipt of the audit of the base and the merged checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_atlas.auditing.run import measure
from moe_atlas.options import AuditOptions
from moe_atlas.receipt.write import write_receipt
from scripts.oracle import tiny
from tests.support import adapters, pairs

STORED = (
    "path",
    "digest",
    "tensors",
    "bytes",
    "bytes_read",
    "dtype",
    "files",
    "adapter",
    "config",
    "config_sha256",
)
"""Facts of a checkpoint that say how it is stored."""
KINDS = {
    "everything": {
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": [*adapters.EXPERTS, "mlp.gate.weight"],
        "modules_to_save": ["lm_head"],
    },
    "attention alone": {"target_modules": ["q_proj", "v_proj"]},
}


def audited(base, tuned, probe, folder, **options):
    folder.mkdir()
    facts, arrays = measure(base, tuned, probe, AuditOptions(**options))
    return write_receipt(facts, arrays, folder / "receipt.json"), arrays


def alike(receipt):
    """A receipt without times and without what says how the tuned checkpoint is stored."""
    left = json.loads(json.dumps(receipt))
    for key in ("timing", "differences"):
        del left[key]
    del left["evidence"]["receipt_sha256"]
    for key in STORED:
        left["checkpoints"]["tuned"].pop(key, None)
    left["warnings"] = [row for row in left["warnings"] if not row["code"].startswith("adapter-")]
    return left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_the_receipt_of_the_merged_checkpoint(tmp_path, kind, dtype):
    base = tiny.save("qwen3_moe", tmp_path / "base", dtype=dtype)
    adapter = adapters.train(base, tmp_path / "adapter", size=0.05, task_type="CAUSAL_LM", **KINDS[kind])
    merged = adapters.merge(base, adapter, tmp_path / "merged")
    probe = pairs.probe(tmp_path / "probe")
    expected, windows = audited(base, merged, probe, tmp_path / "of-merged")
    found, arrays = audited(base, adapter, probe, tmp_path / "of-adapter")
    assert alike(found) == alike(expected)
    assert all(np.array_equal(arrays[name], windows[name], equal_nan=True) for name in windows)
    read = {side: facts["bytes_read"] for side, facts in found["checkpoints"].items()}
    if kind == "attention alone":  # the experts, most of the bytes, are read of the base alone
        assert read["tuned"] < 0.6 * read["base"] == 0.6 * expected["checkpoints"]["tuned"]["bytes_read"]
    facts = found["checkpoints"]["tuned"]["adapter"]
    assert facts["base_digest"] == found["checkpoints"]["base"]["digest"]
    assert found["checkpoints"]["tuned"]["path"] == f"{base}+adapter"


def test_factors_that_are_not_finite_are_judged_as_in_the_merged_checkpoint(tmp_path):
    base = tiny.save("qwen3_moe", tmp_path / "base")
    adapter = adapters.train(base, tmp_path / "adapter", size=0.05, target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][3, 2] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    probe = pairs.probe(tmp_path / "probe")
    expected, _ = audited(
        base, adapters.merge(base, adapter, tmp_path / "merged"), probe, tmp_path / "of-merged"
    )
    found, _ = audited(base, adapter, probe, tmp_path / "of-adapter")
    assert found["verdict"] == "fail"
    assert alike(found) == alike(expected)
