"""Sources as people have them: unpacked, listed and named by a pattern, each within its bounds."""

from __future__ import annotations

import builtins
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from probe_files import encoder_of, write_rows

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents import formats, sources
from moe_atlas.probes.documents.sources import Source, open_source, read_source

ROWS = [{"text": "one"}, {"text": "two", "id": "own"}]


def texts(source: Source) -> list[tuple[str, Any]]:
    return [(record.document_id, record.content) for record in source.records]


def refusal(folder: Path, source: str) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        open_source(folder, source)
    assert caught.value.code == "E_PROBE_SOURCE"
    return caught.value


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.parquet"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_every_file_of_rows_says_the_same(tmp_path: Path, name: str, mark: bytes) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS, pa.schema({"text": pa.string(), "id": pa.string()})), path)
    else:
        raw = mark + (lines(ROWS) if "jsonl" in name else json.dumps(ROWS).encode())
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert texts(read_source(path)) == [("1", "one"), ("own", "two")]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\r\n")
    assert texts(read_source(tmp_path / "a.txt")) == [("a.txt", "hello\r\n")]
    (tmp_path / "a.txt").write_bytes("hello".encode("utf-16"))
    assert "UTF-16" in refusal(tmp_path, "a.txt").next_step


def test_what_a_compressed_file_unpacks_to_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * (20 << 20) + b'"}'))
    assert "unpacks to more than 16777216 bytes" in refusal(tmp_path, path.name).problem
    whole = gzip.compress(lines(ROWS))
    for raw in (whole[:-6], b"no gzip", whole[:20] + b"\xff" * 9 + whole[29:]):
        path.write_bytes(raw)
        assert "no whole gzip file" in refusal(tmp_path, path.name).problem


def test_what_a_parquet_file_unpacks_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"{n:09}" * 100 for n in range(100)], "other": ["x" * 10_000] * 100})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    size = (tmp_path / "a.parquet").stat().st_size
    monkeypatch.setattr(formats, "MAX_SOURCE_BYTES", 200_000)
    assert size < 200_000
    assert len(read_source(tmp_path / "a.parquet").records) == 100  # the other column is not counted
    monkeypatch.setattr(formats, "MAX_SOURCE_BYTES", max(size, 50_000))
    assert "unpacks to more than" in refusal(tmp_path, "a.parquet").problem
    monkeypatch.undo()
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in refusal(tmp_path, "a.parquet").problem


def test_nested_columns_come_as_messages_and_nulls_as_nothing(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "name": "n"}]
    pq.write_table(
        pa.table({"messages": [messages], "text": pa.nulls(1, pa.string())}), tmp_path / "a.parquet"
    )
    (record,) = read_source(tmp_path / "a.parquet").records
    assert record.content.messages == (messages[0], messages[1])


def saved(folder: Path, rows: list[dict[str, Any]]) -> None:
    """What ``Dataset.save_to_disk`` of the datasets library writes."""
    import pyarrow as pa

    folder.mkdir()
    table = pa.Table.from_pylist(rows)
    names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
    for name, part in zip(names, (table.slice(0, 1), table.slice(1)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset(tmp_path: Path) -> None:
    saved(tmp_path / "train", [{"text": "one", "extra": 1}, {"text": "two", "extra": 2}])
    source = open_source(tmp_path, "train")
    assert [text for _, text in texts(source)] == ["one", "two"]
    assert len({name for name, _ in texts(source)}) == 2
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "several splits: 'train'" in refusal(tmp_path.parent, tmp_path.name).problem
    state = {"_data_files": [{"filename": "../secret.arrow"}]}
    (tmp_path / "train" / "state.json").write_text(json.dumps(state))
    assert "names no Arrow files of its folder" in refusal(tmp_path, "train").problem


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    error = refusal(tmp_path, "a.parquet")
    assert "needs pyarrow" in error.problem
    assert "moe-atlas[data]" in error.next_step


def test_a_pattern_names_texts_of_any_ending(tmp_path: Path) -> None:
    for name in ("docs/a.md", "docs/deep/b.md", "docs/.hidden.md", "docs/c.rst", "docs/rows.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_rows(tmp_path / "docs/rows.jsonl", list(ROWS))
    assert texts(open_source(tmp_path, "docs/**/*.md")) == [
        ("docs/a.md", "docs/a.md"),
        ("docs/deep/b.md", "docs/deep/b.md"),
    ]
    every = open_source(tmp_path, "docs/*")
    assert [name for name, _ in texts(every)] == ["docs/a.md", "docs/c.rst", "docs/rows.jsonl:1", "own"]
    before = every.sha256
    (tmp_path / "docs/c.rst").rename(tmp_path / "docs/d.rst")
    assert open_source(tmp_path, "docs/*").sha256 != before
    (tmp_path / "odd[1].txt").write_text("a file of that very name")
    assert texts(open_source(tmp_path, "odd[1].txt"))[0][0] == "odd[1].txt"


def test_a_pattern_stays_in_its_folder_and_matches_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "secret.md").write_text("secret")
    assert "leaves the probe file's folder" in refusal(folder, "../*.md").problem
    assert "leaves the probe file's folder" in refusal(folder, "sub/../../*.md").problem
    assert "leaves the probe file's folder" in refusal(folder, f"{tmp_path}/*.md").problem
    assert "matches no file" in refusal(folder, "*.md").problem
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    assert "is a link that leaves" in refusal(folder, "*.md").problem
    (folder / "link.md").unlink()
    (folder / "a.md").write_bytes(b"\xff\xff")
    assert refusal(folder, "*.md").where == "a.md"
    monkeypatch.setattr(sources, "MAX_FILES", 0)
    assert "matches more than 0 files" in refusal(folder, "*.md").problem


def test_an_unknown_ending_is_told_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    assert 'source: "*.md"' in refusal(tmp_path, "a.md").next_step
    (tmp_path / "a.jsonl").write_text('[{"text": "x"}]\n')
    assert "name the file .json" in refusal(tmp_path, "a.jsonl").next_step
    (tmp_path / "a.json").write_text('{"text": "x"}')
    assert "must be a JSON array of objects, found dict" in refusal(tmp_path, "a.json").problem


def test_alpaca_rows_are_rendered_as_alpaca_does(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La"},
        {"instruction": "Rest.", "output": "Zz"},
    ]
    write_rows(tmp_path / "a.jsonl", list(rows))
    records = read_source(tmp_path / "a.jsonl").records
    assert records[0].prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
    )
    assert records[1].prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSing.\n\n### Response:"
    )
    part = encoder_of(tmp_path).part(records[2])
    assert part.counted is not None
    assert bytes(part.tokens[part.counted].astype("u1")) == b"Zz"
    write_rows(tmp_path / "a.jsonl", [{"instruction": "x", "output": None}])
    assert "output must be text" in refusal(tmp_path, "a.jsonl").problem


def test_rows_of_two_forms_need_a_choice(tmp_path: Path) -> None:
    row = {"text": "whole", "instruction": "x", "output": "y"}
    write_rows(tmp_path / "a.jsonl", [dict(row)])
    error = refusal(tmp_path, "a.jsonl")
    assert "found text and instruction+output" in error.problem
    assert "rows: instruction" in error.next_step
    assert read_source(tmp_path / "a.jsonl", "text").records[0].content == "whole"
    assert read_source(tmp_path / "a.jsonl", "instruction").records[0].content == "y"
    with pytest.raises(InputRefused, match="messages is missing"):
        read_source(tmp_path / "a.jsonl", "messages")
