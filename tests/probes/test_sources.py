from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from probe_files import encoder_of, write_rows
from safetensors.numpy import save_file

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents import formats
from moe_atlas.probes.documents.sources import read_source
from moe_atlas.probes.documents.tokenizer import open_tokenizer


def refusal(path: Path) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        read_source(path)
    assert caught.value.code == "E_PROBE_SOURCE"
    return caught.value


def test_jsonl_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "héllo", "url": "other columns are left alone"},
        {"tokens": [3, 1, 2], "id": 7},
        {"prompt": "a", "completion": "b", "id": "x"},
        {"prompt": [1], "completion": [2, 3]},
    ]
    path.write_text("".join(json.dumps(row) + "\r\n" for row in rows[:2]) + "\n")
    with path.open("a") as file:
        file.write("\n".join(json.dumps(row) for row in rows[2:]))
    found = read_source(path).records
    assert [record.document_id for record in found] == ["1", "7", "x", "5"]
    assert [record.where for record in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4", "a.jsonl:5"]
    encoder = encoder_of(tmp_path)
    parts = [encoder.part(record) for record in found]
    assert [(part.tokens.tolist(), part.counted is not None and part.counted.tolist()) for part in parts] == [
        (list("héllo".encode()), False),
        ([3, 1, 2], False),
        ([97, 98], [False, True]),
        ([1, 2, 3], [False, True, True]),
    ]
    assert all(part.tokens.dtype == np.int64 for part in parts)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1]", "must be a JSON object, found list"),
        (b"{", "is not JSON"),
        (b'{"text": "a", "text": "b"}', "duplicate key"),
        (b'{"text": NaN}', "NaN is not a finite number"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": 3}', "text must be text, found int"),
        (b'{"text": [3]}', "text must be text, found list"),
        (b'{"tokens": "3"}', "tokens must be a list of token ids, found str"),
        (b'{"tokens": [3, -1]}', "found '-1'"),
        (b'{"tokens": [3, 2147483648]}', "integers from 0 to 2147483647"),
        (b'{"tokens": [1.0]}', "found '1.0'"),
        (b'{"tokens": [true]}', "found 'True'"),
        (b'{"tokens": [[1]]}', "found '[1]'"),
        (b'{"tokens": [1' + b"0" * 5000 + b"]}", "is not JSON"),
        (b'{"text": "a", "tokens": [1]}', "found text and tokens"),
        (b'{"text": "a", "prompt": "b"}', "found text and prompt+completion"),
        (b'{"prompt": "b"}', "completion is missing"),
        (b'{"completion": "b"}', "prompt is missing"),
        (b'{"prompt": {}, "completion": "b"}', "prompt must be text or a list of token ids, found dict"),
        (b'{"txt": "a"}', "found only 'txt'"),
        (b'{"text": "a", "id": ""}', "id must be"),
        (b'{"text": "a", "id": 1.5}', "id must be"),
        (b'{"text": "a", "id": true}', "id must be"),
        (b'{"text": "a", "id": null}', "id must be"),
        (b'{"text": "a", "id": "\\udfff"}', "id holds half"),
        (b'{"text": ' + b"[" * 200_000, "is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    error = refusal(path)
    assert error.where == "a.jsonl:2"
    assert problem in error.problem


def test_an_empty_prompt_leaves_the_first_token_unpredicted(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": "", "completion": "b"}])
    record = read_source(tmp_path / "a.jsonl").records[0]
    with pytest.raises(InputRefused, match="prompt is empty"):
        encoder_of(tmp_path).part(record)


def test_a_folder_of_documents(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "b.txt").write_text("bee")
    (folder / "a.txt").write_text("ay")
    (folder / ".DS_Store").write_bytes(b"\xff")
    write_rows(folder / "c.jsonl", [{"text": "x"}, {"text": "y", "id": "own"}])
    source = read_source(folder)
    assert [(r.document_id, r.content) for r in source.records] == [
        ("a.txt", "ay"),
        ("b.txt", "bee"),
        ("c.jsonl:1", "x"),
        ("own", "y"),
    ]
    before = source.sha256
    (folder / "b.txt").rename(folder / "d.txt")
    assert read_source(folder).sha256 != before
    (folder / "notes.md").write_text("x")
    assert "only" in refusal(folder).problem


def test_safetensors_tokens(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    table = np.arange(12, dtype=np.int64).reshape(3, 4)
    save_file({"tokens": table}, path)
    records = read_source(path).records
    assert [record.document_id for record in records] == ["0", "1", "2"]
    assert np.array_equal([record.content for record in records], table)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"tokens": np.zeros((2, 3), np.int32)}, "found 'tokens' I32 [2, 3]"),
        ({"tokens": np.zeros(3, np.int64)}, "found 'tokens' I64 [3]"),
        ({"ids": np.zeros((2, 3), np.int64)}, "found 'ids'"),
        ({"tokens": np.zeros((2, 3), np.int64), "x": np.zeros(1)}, "must hold one tensor"),
        ({"tokens": np.array([[1, 2], [3, -4]])}, "from 0 to"),
        ({"tokens": np.array([[1, 2**31]])}, "from 0 to"),
    ],
)
def test_safetensors_of_another_form(tmp_path: Path, tensors: dict[str, np.ndarray], problem: str) -> None:
    path = tmp_path / "t.safetensors"
    save_file(tensors, path)
    assert problem in refusal(path).problem


def test_safetensors_headers_are_parsed_strictly(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    entry = b'{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]}'
    twice = b'{"tokens":' + entry + b',"tokens":' + entry + b"}"
    path.write_bytes(struct.pack("<Q", len(twice)) + twice + bytes(8))
    with pytest.raises(InputRefused) as caught:
        read_source(path)
    assert caught.value.code == "E_DUP_KEY"
    for raw in (b"", b"\x08", struct.pack("<Q", 1 << 60) + b"{}"):
        path.write_bytes(raw)
        assert "cut short" in refusal(path).problem


def test_other_formats_and_kinds_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04N.")
    assert "no format known by its ending" in refusal(tmp_path / "a.pkl").problem
    assert "cannot be read" in refusal(tmp_path / "none.jsonl").problem
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a regular file" in refusal(tmp_path / "pipe.jsonl").problem
    (tmp_path / "a.txt").write_bytes(b"ok \xff")
    assert "is not UTF-8 (byte 3)" in refusal(tmp_path / "a.txt").problem
    monkeypatch.setattr(formats, "MAX_SOURCE_BYTES", 3)
    assert "longer than the limit of 3 bytes" in refusal(tmp_path / "a.txt").problem


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "a"}, {"tokens": [1]}])
    text, ids = read_source(tmp_path / "a.jsonl").records
    encoder = encoder_of(tmp_path, tokenizer=None)
    assert encoder.part(ids).tokens.tolist() == [1]
    with pytest.raises(InputRefused) as caught:
        encoder.part(text)
    assert caught.value.code == "E_PROBE_TOKENIZER"
    assert caught.value.where == "a.jsonl:1"


def test_a_tokenizer_file_neither_truncates_nor_pads_nor_adds(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"[BOS]": 0, "a": 1, "b": 2, "[UNK]": 3}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 0)])
    inner.enable_truncation(3)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer("tokenizer.json", tmp_path)
    assert tokenizer.encode("a b a b a", "x").tolist() == [1, 2, 1, 2, 1]
    assert tokenizer.encode("a", "x").tolist() == [1]
    assert tokenizer.kind == "file"
    before = tokenizer.sha256
    inner.no_padding()
    inner.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer("tokenizer.json", tmp_path).sha256 != before


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "WordLevel"}}'])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(InputRefused) as caught:
        open_tokenizer("tokenizer.json", tmp_path)
    assert caught.value.code == "E_PROBE_TOKENIZER"
