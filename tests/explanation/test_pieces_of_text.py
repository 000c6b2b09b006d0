"""Token ids become pieces of text that are whole, complete and safe to show; small numbers of an explanation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moe_atlas.explanation.categories import kind_of
from moe_atlas.explanation.explain import half_of
from moe_atlas.explanation.passages import densest, level
from moe_atlas.explanation.sentences import percent, signed
from moe_atlas.explanation.text import pieces, visible, without_commands
from moe_atlas.probes.documents.tokenizer import ByteTokenizer, FileTokenizer, NoTokenizer, parse_tokenizer


def spelled(tokenizer, ids) -> list[str]:
    found = list(pieces(tokenizer, ids))
    assert (
        [piece.first for piece in found] == [0, *(piece.stop for piece in found[:-1])] if ids else not found
    )
    assert not found or found[-1].stop == len(ids)
    return [piece.text for piece in found]


@given(st.text(max_size=30))
def test_bytes_give_the_text_back_one_character_a_piece(text):
    raw = text.encode("utf-8", "replace")
    assert spelled(ByteTokenizer(), list(raw)) == list(raw.decode("utf-8"))


def test_a_window_that_cuts_a_character_loses_no_token():
    raw = list("ä€😀ab".encode())
    assert spelled(ByteTokenizer(), raw[1:-2]) == ["\ufffd€", "😀"]
    assert "".join(spelled(ByteTokenizer(), raw[:4])) == "ä\ufffd"
    assert "".join(spelled(ByteTokenizer(), [0x80] * 10)) == "\ufffd" * 10


def test_without_a_tokenizer_the_ids_are_the_text():
    assert spelled(NoTokenizer(), [17, 4]) == ["[17]", "[4]"]


def metaspace() -> FileTokenizer:
    """A tokenizer whose decoder drops a space at the start of a text, with bytes as a fallback and special tokens."""
    words = ["<s>", "<unk>", "▁the", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>", "<unk>"])
    return parse_tokenizer(inner.to_str().encode(), "tokenizer.json")


def test_spaces_stay_and_special_tokens_show():
    tokenizer = metaspace()
    smile = [5 + byte for byte in "😀".encode()]
    assert spelled(tokenizer, [2, 3, 4, *smile, 3]) == ["the", " cat", "s", "😀", " cat"]
    assert spelled(tokenizer, [0, 2, 3]) == ["<s>", " the", " cat"]
    assert tokenizer.special_ids() == {0, 1}


@given(st.text())
def test_what_is_shown_prints(text):
    assert all(c.isprintable() for c in visible(text) if c != "\n")


@given(st.lists(st.text(alphabet="#[a ", max_size=4), max_size=8))
def test_no_command_is_left_however_texts_are_cut(texts):
    shown = "".join(without_commands(texts))
    assert "##[" not in shown
    assert shown.replace(r"\x5b", "[") == "".join(texts)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" the", "letters"), ("ä", "letters"), ("42", "digits"), (" \n", "white space"), ("", "white space"),
        ("():", "punctuation"), ("x1", "mixed or part of a character"), ("\ufffd", "mixed or part of a character"),
        ("_a", "mixed or part of a character"), ("\x07", "mixed or part of a character"),
    ],
)  # fmt: skip
def test_a_token_is_of_one_kind(text, kind):
    assert kind_of(text) == kind


def test_half_of_the_loss_is_on_so_many_tokens():
    assert half_of(np.array([4.0, 1.0, 1.0, 1.0, 1.0, -9.0, 0.0, 0.0])) == 1 / 8
    assert half_of(np.array([1.0, 1.0, 1.0, 1.0])) == 2 / 4
    assert half_of(np.array([0.0, -1.0])) is None
    assert half_of(np.array([np.inf, 1.0])) == 1 / 2


def test_a_passage_is_where_most_loss_was_gained():
    assert densest(np.array([np.nan, 0.0, 5.0, 5.0, -9.0, 1.0]), 2) == 2
    assert densest(np.array([1.0, 2.0]), 5) == 0
    assert densest(np.zeros(4), 2) == 0


@pytest.mark.parametrize(
    ("increase", "shade"), [(None, 0), (0.0, 0), (0.1, 0), (0.6, 2), (1.0, 4), (50.0, 4), (-0.6, -2), (np.inf, 4)]
)  # fmt: skip
def test_shades_follow_the_change(increase, shade):
    assert level(increase, 1.0) == shade


def test_numbers_in_words():
    assert [percent(x) for x in (0.0, 1e-9, 0.1234, 0.99999, 1.0)] == ["0%", "0.1%", "12.3%", "99.9%", "100%"]
    assert [signed(x) for x in (0.0, 1.5, -2.0, float("inf"))] == ["0", "+1.5", "-2", "not finite"]
