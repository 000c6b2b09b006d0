"""An adapter that is not read is refused in one line: the file, the tensor or key, what is wrong, what helps."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_atlas.errors import AtlasError, InputRefused
from scripts.oracle import tiny
from tests.support import adapters

MODEL, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
STACK = "base_model.model.model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("refused")
    base = tiny.save("qwen3_moe", root / "base")
    adapters.train(base, root / "linear", target_modules=["q_proj"], lora_alpha=6)
    adapters.train(base, root / "dora", target_modules=["q_proj"], use_dora=True)
    adapters.train(base, root / "experts", target_modules=[], target_parameters=adapters.EXPERTS)
    return root


@pytest.fixture
def adapter(made, tmp_path):
    return shutil.copytree(made / "linear", tmp_path / "adapter")


def configure(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, change):
    tensors = load_file(folder / MODEL)
    change(tensors)
    save_file(tensors, folder / MODEL)


def refused(made, folder, code, *said, layouts=()):
    with pytest.raises(AtlasError) as raised:
        adapters.matched(made / "base", folder, *layouts)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"{code} "), line
    for words in (str(folder), *said):
        assert words in line, (words, line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("lora_bias", True),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("trainable_token_indices", [3]),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", 1),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"beta": 1e-4}),
        ("alora_invocation_tokens", [5, 6]),
        ("a_key_of_tomorrow", "on"),
        ("r", 0),
        ("r", "4"),
        ("r", True),
        ("lora_alpha", "6"),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"(": 4}),
        ("rank_pattern", {"(a+)+q_proj": 4}),
        ("rank_pattern", {"(a|aa)+q_proj": 4}),
        ("rank_pattern", {".*.*.*.*.*q_proj": 4}),
        ("rank_pattern", [4]),
        ("lora_alpha", 10**400),
        ("lora_alpha", float("1e300")),
        ("alpha_pattern", {"q_proj": "6"}),
        ("target_parameters", "mlp.experts.gate_up_proj"),
        ("lora_B_layout", "expert_first"),
        ("peft_version", 21),
    ],
)
def test_a_key_that_changes_the_meaning_is_refused_by_name(made, adapter, key, value):
    configure(adapter, **{key: value})
    refused(made, adapter, "E_ADAPTER", CONFIG, f"'{key}'")


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_an_unknown_key_that_is_empty_changes_nothing(made, adapter, value):
    configure(adapter, a_key_of_tomorrow=value)
    assert adapters.matched(made / "base", adapter).derived


def test_a_rank_that_the_tensors_do_not_have_is_refused(made, adapter):
    configure(adapter, r=8)
    refused(made, adapter, "E_ADAPTER", f"{Q}.lora_A.weight", "the rank 8", "the tensor has 4")
    configure(adapter, r=10**12)
    refused(made, adapter, "E_ADAPTER", "1000000000000")


CHANGES = {
    "a module that the base lacks": (
        lambda t: t.update({f"{Q.replace('layers.0', 'layers.9')}.lora_A.weight": t.pop(f"{Q}.lora_A.weight"),
                            f"{Q.replace('layers.0', 'layers.9')}.lora_B.weight": t.pop(f"{Q}.lora_B.weight")}),
        ("layers.9", "belongs to no tensor of the base"),
    ),
    "another width": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 33)}), ("[40, 33]", "the base's has [40, 32]")
    ),
    "another height": (
        lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(41, 4)}), ("[41, 32]", "the base's has [40, 32]")
    ),
    "no B": (lambda t: t.pop(f"{Q}.lora_B.weight"), ("the factor B", "is missing")),
    "no A": (lambda t: t.pop(f"{Q}.lora_A.weight"), ("the factor A", "is missing")),
    "a vector": (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4)}), ("expected a matrix",)),
    "an empty factor": (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(0, 32)}), ("expected a matrix",)),
    "a bias of B": (lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(40)}), ("lora_B.bias", "is not read")),
    "AdaLoRA's values": (lambda t: t.update({f"{Q}.lora_E": torch.ones(4, 1)}), ("lora_E", "is not read")),
    "the adapter's name": (
        lambda t: t.update({f"{Q}.lora_A.default.weight": torch.ones(4, 32)}), ("lora_A.default", "is not read")
    ),
    "no prefix": (lambda t: t.update({"q_proj.lora_A.weight": torch.ones(4, 32)}), ("base_model.model.",)),
    "a magnitude without DoRA": (
        lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(40)}), ("use_dora is false",)
    ),
    "a whole tensor that the base lacks": (
        lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 32)}),
        ("score.weight", "belongs to no tensor of the base"),
    ),
    "a whole tensor of another shape": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(31)}), ("[31]", "[32]")
    ),
    "a whole tensor twice": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(32),
                            "base_model.model.model.norm.modules_to_save.weight": torch.ones(32)}),
        ("says the same",),
    ),
    "a stack of experts of another base": (
        lambda t: t.update({f"{STACK}.lora_A.weight": torch.ones(32, 7), f"{STACK}.lora_B.weight": torch.ones(5, 32)}),
        ("[5, 7]", "the base's experts have [24, 32] or [32, 12]"),
    ),
    "names that look like paths": (
        lambda t: t.update({"base_model.model.../../etc/passwd.weight": torch.ones(2)}),
        ("belongs to no tensor of the base",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_tensors_that_do_not_fit_are_refused_by_name(made, adapter, kind):
    change, said = CHANGES[kind]
    rewrite(adapter, change)
    refused(made, adapter, "E_ADAPTER", *said)


def test_a_magnitude_of_another_height_is_refused(made, tmp_path):
    adapter = shutil.copytree(made / "dora", tmp_path / "adapter")
    rewrite(adapter, lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(39)}))
    refused(made, adapter, "E_ADAPTER", "lora_magnitude_vector", "[39]", "[40]")
    rewrite(adapter, lambda t: t.pop(f"{Q}.lora_magnitude_vector"))
    refused(made, adapter, "E_ADAPTER", "has no magnitude")


def test_the_same_parameter_twice_is_refused(made, tmp_path):
    adapter = shutil.copytree(made / "experts", tmp_path / "adapter")
    rewrite(
        adapter,
        lambda t: t.update(
            {
                f"{STACK}.base_layer.base_layer.lora_{part}.weight": t[f"{STACK}.lora_{part}.weight"].clone()
                for part in "AB"
            }
        ),
    )
    refused(made, adapter, "E_ADAPTER", "changes what")


def test_a_pickle_is_refused_and_never_loaded(made, adapter):
    (adapter / MODEL).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(S'touch /tmp/loaded'\ntR.")
    refused(made, adapter, "E_FORMAT", "adapter_model.bin", "a PyTorch pickle", "writes safetensors")


def test_a_pickle_under_the_other_name_is_refused(made, adapter):
    (adapter / MODEL).write_bytes(b"\x80\x02cos\nsystem\n(S'touch /tmp/loaded'\ntR." + bytes(64))
    refused(made, adapter, "E_FORMAT", "a pickle")


def test_a_missing_half_is_named(made, adapter):
    (adapter / MODEL).unlink()
    refused(made, adapter, "E_NOT_FOUND", MODEL)
    (adapter / CONFIG).unlink()
    refused(made, adapter, "E_NOT_FOUND", CONFIG, "save_pretrained")


def test_links_out_of_the_folder_are_refused(made, adapter, tmp_path):
    shutil.move(adapter / MODEL, tmp_path / "elsewhere.safetensors")
    os.symlink(tmp_path / "elsewhere.safetensors", adapter / MODEL)
    refused(made, adapter, "E_SYMLINK", MODEL)


def test_a_configuration_that_two_readers_read_differently_is_refused(made, adapter):
    path = adapter / CONFIG
    path.write_text(path.read_text().replace('"r": 4', '"r": 4, "r": 8'))
    refused(made, adapter, "E_DUP_KEY", "'r'")


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_half_of_a_tie_is_refused(tmp_path, name):
    base = tiny.save("qwen3_moe-mixed-layers", tmp_path / "base")
    adapter = adapters.train(base, tmp_path / "adapter", target_modules=["q_proj"])
    rewrite(adapter, lambda t: t.update({f"base_model.model.{name}.weight": torch.ones(48, 32)}))
    configure(adapter, modules_to_save=[name.rpartition(".")[2]])
    with pytest.raises(InputRefused, match=f"E_ADAPTER.*{name}.*the base ties them"):
        adapters.matched(base, adapter)


def test_strange_marks_are_no_marks(made, adapter):
    configure(adapter, auto_mapping=5)
    assert adapters.matched(made / "base", adapter).derived
