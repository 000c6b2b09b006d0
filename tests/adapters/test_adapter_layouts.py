"""What the bytes of a stack of experts leave open: which side A is on, how B is packed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_atlas.checkpoint.reader import Reader
from moe_atlas.errors import InputRefused, UsageError
from scripts.oracle import tiny
from tests.support import adapters

MODEL, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EXPERTS, RANK = 8, 4
SQUARE = {"moe_intermediate_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Adapters of stacks of experts; those of `square` change square matrices alone."""
    root = tmp_path_factory.mktemp("layouts")
    oblong, square = (
        tiny.save("qwen3_moe", root / name, **kw) for name, kw in (("oblong", {}), ("square", SQUARE))
    )
    both = {"target_modules": [], "target_parameters": adapters.EXPERTS}
    down = {"target_modules": [], "target_parameters": adapters.EXPERTS[1:]}
    adapters.train(oblong, root / "oblong-both", **both)
    adapters.train(square, root / "square-both", **both)
    adapters.train(square, root / "square-down", **down)
    adapters.train(oblong, root / "oblong-first-rank", r=1, **both)
    return root


@pytest.fixture
def copied(made, tmp_path):
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def configure(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def repack(folder, change):
    """Write other factors in the place of each A and B."""
    tensors = load_file(folder / MODEL)
    for name in [name for name in tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        tensors[name], tensors[other] = (part.contiguous() for part in change(tensors[name], tensors[other]))
    save_file(tensors, folder / MODEL)


def by_expert(a, b):
    """B with the expert slowest along its columns."""
    return a, b.reshape(len(b), RANK, EXPERTS).transpose(1, 2).reshape(b.shape)


def on_output(a, b):
    """The factors whose product, transposed, is the same change."""
    a_ERI, b_ERO = a.reshape(EXPERTS, RANK, -1), b.reshape(len(b), RANK, EXPERTS).permute(2, 1, 0)
    return b_ERO.reshape(EXPERTS * RANK, -1), a_ERI.permute(2, 1, 0).reshape(-1, RANK * EXPERTS)


def changed(made, base, folder, *layouts):
    source = adapters.matched(made / base, folder, *layouts)
    reader = Reader(source)
    return source.matched, {name: reader.read(name) for name in source.derived}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.allclose(one[n], other[n], rtol=0, atol=1e-7) for n in one
    )


@pytest.mark.parametrize("version", ["0.21.2", "0.18.1", None])
def test_shapes_say_on_which_side_a_is_whatever_the_version(made, copied, version):
    _, expected = changed(made, "oblong", made / "oblong-both")
    folder = copied("oblong-both")
    repack(folder, on_output)
    configure(folder, peft_version=version, lora_B_layout="rank_major")
    matched, found = changed(made, "oblong", folder)
    assert matched.side == "a_on_output"
    assert same(found, expected)


def test_one_oblong_matrix_decides_for_the_square_ones(made, copied):
    folder = copied("square-both")
    configure(folder, peft_version=None, lora_B_layout="rank_major")
    matched, found = changed(made, "square", folder)
    assert matched.side == "a_on_input"
    assert same(found, changed(made, "square", made / "square-both")[1])


@pytest.mark.parametrize(
    ("version", "side"),
    [
        ("0.21.2", "a_on_input"),
        ("0.19.1", "a_on_input"),
        ("0.18.0", "a_on_output"),
        ("0.17.1", "a_on_output"),
    ],
)
def test_the_version_decides_between_square_readings(made, copied, version, side):
    folder = copied("square-down")
    configure(folder, peft_version=version)
    matched, found = changed(made, "square", folder)
    assert matched.side == side
    assert same(found, changed(made, "square", made / "square-down", side)[1])


@pytest.mark.parametrize("version", [None, "0.19.0", "0.16.0", "newest"])
def test_square_matrices_of_no_known_version_are_refused_until_an_option_says(made, copied, version):
    folder = copied("square-down")
    configure(folder, peft_version=version, lora_B_layout="rank_major")
    with pytest.raises(InputRefused, match="E_ADAPTER") as raised:
        changed(made, "square", folder)
    for words in (
        "two ways",
        "--adapter-layout a_on_input",
        "--adapter-layout a_on_output",
        "0.19.1",
        "0.18",
    ):
        assert words in str(raised.value)
    one, other = (changed(made, "square", folder, side)[1] for side in ("a_on_input", "a_on_output"))
    assert same(one, changed(made, "square", made / "square-down")[1])
    assert not same(one, other)


def test_the_marker_says_how_b_is_packed(made, copied):
    _, expected = changed(made, "oblong", made / "oblong-both")
    folder = copied("oblong-both")
    repack(folder, by_expert)
    configure(folder, lora_B_layout="grouped_by_expert", auto_mapping={"unsloth_fixed": True})
    matched, found = changed(made, "oblong", folder)
    assert matched.packing == "grouped_by_expert"
    assert same(found, expected)


@pytest.mark.parametrize(
    "changes", [{"auto_mapping": {"unsloth_fixed": True}}, {"peft_version": None}], ids=str
)
def test_a_packing_that_nothing_says_is_refused_until_an_option_says(made, copied, changes):
    _, expected = changed(made, "oblong", made / "oblong-both")
    folder = copied("oblong-both")
    configure(folder, **changes)
    with pytest.raises(InputRefused, match="E_ADAPTER") as raised:
        changed(made, "oblong", folder)
    for words in ("--adapter-layout rank_major", "--adapter-layout grouped_by_expert", "unsloth", "slowest"):
        assert words in str(raised.value)
    assert same(changed(made, "oblong", folder, "rank_major")[1], expected)
    assert not same(changed(made, "oblong", folder, "grouped_by_expert")[1], expected)


def test_an_option_that_the_adapter_contradicts_is_a_mistake(made, copied):
    folder = copied("oblong-both")
    configure(folder, lora_B_layout="rank_major")
    for option, said in (("a_on_output", "the shapes"), ("grouped_by_expert", "adapter_config.json")):
        with pytest.raises(UsageError, match=f"--adapter-layout: {said}.*the option says {option}"):
            changed(made, "oblong", folder, option)


def test_both_packings_of_rank_one_are_the_same(made, copied):
    folder = copied("oblong-first-rank")
    configure(folder, peft_version=None)
    assert same(changed(made, "oblong", folder)[1], changed(made, "oblong", folder, "grouped_by_expert")[1])
