"""Which output head is used: the stored one where there is one, and no config's word sets it aside unread."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from moe_atlas.errors import InputRefused
from moe_atlas.loading import tied_head
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny
from tests.families import test_multimodal as multimodal
from tests.support import pairs

TIED = "qwen3_moe-mixed-layers"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def logits(folder):
    spec, reader = tiny.open_tiny(folder)
    return Replay(spec, dtype=torch.float32).forward(reader, tiny.tokens())


def head_of(folder):
    spec, _ = tiny.open_tiny(folder)
    return next(ref for ref in spec.final_refs if ref.role == "head")


@pytest.fixture
def base(tmp_path):
    return tiny.save(TIED, tmp_path / "base")


def with_head(base, change):
    """The tied checkpoint with a head stored beside the embedding."""

    def add(tensors):
        tensors[HEAD] = change(tensors[EMBEDDING].clone())

    return pairs.variant(base, base.parent / "headed", add)


def moved(row, column=0):
    def change(head):
        head[row, column] += 1e-6
        return head

    return change


@pytest.mark.parametrize("row", [0, 17, 47])
def test_a_head_that_is_said_to_be_the_embedding_and_is_not_is_refused(base, monkeypatch, row):
    monkeypatch.setattr(tied_head, "PIECE", 32 * 5)  # five rows at a time
    with pytest.raises(InputRefused) as caught:
        tiny.open_tiny(with_head(base, moved(row)))
    message = str(caught.value)
    assert caught.value.code == "E_FAMILY"
    assert "headed: lm_head.weight: " in message
    assert f"{EMBEDDING} (tie_word_embeddings), but the two tensors differ from row {row} on" in message
    assert "save the model again, untied" in message


def test_the_reference_uses_the_head_that_is_refused_here(base):
    """So a loader that obeys the configuration and one that obeys the file serve two models."""
    folder = with_head(base, lambda head: torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))
    served = tiny.oracle(tiny.load_reference(folder), tiny.tokens()).logits
    assert not torch.allclose(served, logits(base), atol=1e-2)
    with pytest.raises(InputRefused, match="some loaders use the stored head"):
        tiny.open_tiny(folder)


@pytest.mark.parametrize(
    "change",
    [lambda head: head, lambda head: head.double()],
    ids=["copied", "wider"],
)
def test_an_equal_head_is_the_same_model_whatever_its_dtype(base, change):
    headed = with_head(base, change)
    spec, _ = tiny.open_tiny(headed)
    assert not spec.tied, "what is stored is used"
    assert head_of(headed).stored == HEAD
    assert spec.skipped == ()
    assert torch.equal(logits(headed), logits(base))


def test_the_same_nan_twice_is_no_difference():
    one = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
    assert not tied_head.different_rows(one, one.clone()).any()
    assert tied_head.different_rows(one, one.nan_to_num(0.0)).tolist() == [True, False]
    assert tied_head.different_rows(one, one.double() + 1e-9).tolist() == [True, True]


def test_a_head_of_another_shape_is_refused(base):
    with pytest.raises(InputRefused, match=r"lm_head.weight: expected shape \[48, 32\], found \[50, 32\]"):
        tiny.open_tiny(with_head(base, lambda head: torch.cat([head, head[:2]])))


def test_a_tied_pair_of_which_the_head_alone_is_stored_is_read(base):
    def move(tensors):
        tensors[HEAD] = tensors.pop(EMBEDDING)

    folder = pairs.variant(base, base.parent / "moved", move)
    served = tiny.oracle(tiny.load_reference(folder), tiny.tokens()).logits
    assert torch.allclose(logits(folder), served, atol=1e-5)
    assert torch.equal(logits(folder), logits(base))
    spec, _ = tiny.open_tiny(folder)
    assert (spec.embed_refs[0].name, spec.embed_refs[0].stored) == (EMBEDDING, HEAD)


def test_an_untied_pair_of_which_one_is_missing_is_refused(tmp_path):
    whole = tiny.save("qwen3_moe", tmp_path / "whole")
    for name in (EMBEDDING, HEAD):
        folder = pairs.variant(
            whole,
            tmp_path / "half",
            lambda tensors, gone=name: {key: tensor for key, tensor in tensors.items() if key != gone},
        )
        with pytest.raises(InputRefused, match=f"{name}: missing tensor"):
            tiny.open_tiny(folder)


def test_a_second_head_elsewhere_is_read_by_nothing(base):
    folder = pairs.variant(
        base, base.parent / "two", lambda t: t.update({f"model.{HEAD}": t[EMBEDDING].clone()})
    )
    with pytest.raises(InputRefused, match="nothing in the qwen3_moe spec reads this tensor"):
        tiny.open_tiny(folder)


def saved(folder, *, inner, outer):
    """A vision-language model whose two configurations may speak of the head differently, and its own logits."""
    text, vision = multimodal.CASES["qwen3_vl_moe"]
    text = {key: value for key, value in text.items() if key != "tie_word_embeddings"}
    text |= {} if inner is None else {"tie_word_embeddings": inner}
    config = AutoConfig.for_model(
        "qwen3_vl_moe", text_config=text, vision_config=vision, tie_word_embeddings=outer
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    tiny.randomise(model, 0)
    model.save_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        return model(input_ids=tiny.tokens(), use_cache=False).logits


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [None, True, False])
def test_the_model_around_the_text_decides_whether_its_head_is_tied(tmp_path, inner, outer):
    served = saved(tmp_path, inner=inner, outer=outer)
    assert (HEAD in load_file(tmp_path / "model.safetensors")) is not outer
    assert (logits(tmp_path) - served).abs().max() < 1e-4
    assert tiny.open_tiny(tmp_path)[0].tied is outer


def test_a_head_that_only_the_text_calls_tied_is_used(tmp_path):
    """transformers writes inner true and outer false for every Qwen3-VL-MoE, and destroying the head must be seen."""
    saved(tmp_path, inner=None, outer=False)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.text_config.tie_word_embeddings, config.tie_word_embeddings) == (True, False)
    before, tensors = logits(tmp_path), load_file(tmp_path / "model.safetensors")
    tensors[HEAD] = tensors[HEAD].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    assert not torch.allclose(logits(tmp_path), before, atol=1e-2)
