"""ERNIE 4.5 VL: experts of text are replayed; those of vision, and their router, are compared by their weights."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, Ernie4_5_VLMoeForConditionalGeneration

from moe_atlas.api import AuditOptions, audit
from moe_atlas.errors import InputRefused
from scripts.oracle import tiny
from tests.support import pairs
from tests.support.multimodal import judged_by_weights, same_as_class

TEXT = tiny.BASE | {
    "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": [12, 6], "moe_num_shared_experts": 2,
    "num_hidden_layers": 3, "mlp_layer_types": ["sparse", "dense", "sparse"], "use_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]},
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}
LAYER = "model.layers.2.mlp."
BIAS = f"{LAYER}moe_statics.e_score_correction_bias"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole model in each dtype."""
    root = tmp_path_factory.mktemp("ernie")
    config = AutoConfig.for_model(
        "ernie4_5_vl_moe", text_config=TEXT, vision_config=VISION, tie_word_embeddings=True
    )
    model = Ernie4_5_VLMoeForConditionalGeneration._from_config(config)
    tiny.randomise(model.eval(), 3)
    model.save_pretrained(root / "float32")
    halved = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(root / "float32", dtype=torch.bfloat16)
    halved.save_pretrained(root / "bfloat16")
    return {torch.float32: root / "float32", torch.bfloat16: root / "bfloat16"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_is_replayed_as_its_class_computes_it(whole, dtype):
    model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        whole[dtype], dtype=dtype, attn_implementation="eager"
    )
    model.eval().set_experts_implementation("eager")
    same_as_class(model, whole[dtype], dtype, "ernie4_5_vl_moe_text", {0, 2})


def test_what_no_token_of_text_reaches_is_skipped_with_its_reason(whole):
    spec, _ = tiny.open_tiny(whole[torch.float32])
    assert {skipped.part for skipped in spec.skipped} == {"modalities"}
    aside = {s.name.removeprefix(LAYER): s.reason for s in spec.skipped if s.name.startswith(LAYER)}
    experts = {f"experts.{e}.{m}_proj.weight" for e in range(8, 16) for m in ("gate", "up", "down")}
    assert aside.keys() == experts | {"gate.weight_1", "moe_statics.e_score_correction_bias"}
    assert aside["moe_statics.e_score_correction_bias"] == "its other entries belong to other modalities"
    replayed_names = {ref.stored for layer in spec.layers for ref in layer.refs}
    assert {BIAS, f"{LAYER}gate.weight"} <= replayed_names


def put(tensor, index, value):
    changed = tensor.clone()
    changed[index] = value
    return changed


DAMAGE = {
    "nothing": ({}, "pass"),
    "a vision expert": ({f"{LAYER}experts.11.up_proj.weight": torch.zeros_like}, "fail"),
    "the vision router": ({f"{LAYER}gate.weight_1": torch.zeros_like}, "fail"),
    "the bias of vision": ({BIAS: lambda t: put(t, 1, 0.0)}, "fail"),
    "the resampler": ({"model.resampler_model.mlp.weight": torch.zeros_like}, "fail"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_outside_text_is_found_by_weights_alone(whole, tmp_path, case):
    changes, verdict = DAMAGE[case]
    base = whole[torch.float32]
    tuned = pairs.variant(
        base, tmp_path / "tuned", lambda t: t | {name: change(t[name]) for name, change in changes.items()}
    )
    probes = pairs.probe(tmp_path / "probe", policy=pairs.SAME)
    made = audit(base, tuned, probes, receipt=tmp_path / "r.json", options=AuditOptions(dtype="float32"))
    judged_by_weights(made, verdict)
    for layer in made.body["layers"]:
        assert layer["pair"]["boundary_drift"]["estimate"] == 0.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            lambda c, t: t.update({f"{LAYER}experts.16.up_proj.weight": torch.zeros(6, 32)}),
            "experts.16.up_proj",
        ),
        (lambda c, t: t.pop(f"{LAYER}experts.7.up_proj.weight"), "experts.7.up_proj"),
        (lambda c, t: t.update({f"{LAYER}gate.weight": t[f"{LAYER}gate.weight"].T.contiguous()}), "[32, 8]"),
        (lambda c, t: t.update({BIAS: t[BIAS][0]}), "[2, 8]"),
        (lambda c, t: c["text_config"]["rope_parameters"].update(mrope_section=[2, 1, 1]), "mrope_section"),
        (lambda c, t: c["text_config"].update(moe_intermediate_size=[12]), "moe_intermediate_size"),
    ],
)
def test_another_layout_is_refused(whole, tmp_path, change, word):
    config = json.loads((whole[torch.float32] / "config.json").read_text())
    tensors = pairs.read(whole[torch.float32])
    change(config, tensors)
    folder = pairs.write(tmp_path / "m", tensors, whole[torch.float32])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefused) as caught:
        tiny.open_tiny(folder)
    assert word in str(caught.value)
