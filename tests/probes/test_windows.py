from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_files import prose, write_rows

from moe_atlas.errors import InputRefused
from moe_atlas.probes import Sample, build_windows, load_probes
from moe_atlas.probes.load import read_probes

SMALL = """\
schema: atlas/probes/v1
name: n
{tokenizer}
windows: {{tokens: {tokens}, per_document: {per_document}, seed: {seed}}}
protected_layers: all
domains:
{domains}
policy:
  task: none
  rewrite: {{coordinate: null, boundary: null, transition: null, content: null}}
  damage: {{nll: null, document_nll: null, document_share: null}}
"""


def cut(
    folder: Path, domains: list[str], tokens: int = 8, per_document: int = 1, seed: int = 1, byte: bool = True
) -> Sample:
    text = SMALL.format(
        tokenizer="tokenizer: bytes" if byte else "",
        tokens=tokens,
        per_document=per_document,
        seed=seed,
        domains="\n".join(f"  - {{{domain}}}" for domain in domains),
    )
    return build_windows(read_probes(text.encode(), folder / "probes.yaml"))


def signature(sample: Sample) -> list[tuple[int, int, str, list[int]]]:
    return [(w.domain, w.document, w.document_id, w.tokens.tolist()) for w in sample.windows]


def test_windows_are_pieces_of_their_documents(probe_file: Path) -> None:
    sample = build_windows(load_probes(probe_file))
    rows = {
        name: {str(n): line for n, line in enumerate((probe_file.parent / f"{name}.jsonl").open(), start=1)}
        for name in ("prose", "canary", "code")
    }
    names = ["prose", "canary", "code", "sft"]
    for window in sample.windows:
        assert window.tokens.dtype == np.int64
        assert window.scored.shape == (len(window.tokens) - 1,)
        if names[window.domain] == "sft":
            continue
        assert len(window.tokens) == 32
        assert window.scored.all()
        text = json.loads(rows[names[window.domain]][window.document_id])["text"].encode()
        assert bytes(window.tokens.astype(np.uint8)) in text


def test_order_base_domains_first_and_one_number_a_document(probe_file: Path) -> None:
    windows = build_windows(load_probes(probe_file)).windows
    assert [w.domain for w in windows] == [0] * 5 + [2] * 5 + [1] * 8 + [3] * 5
    assert [w.document for w in windows] == list(range(23))
    assert [w.document_id for w in windows if w.domain == 1] == [str(n) for n in range(1, 9)]
    chosen = [int(w.document_id) for w in windows if w.domain == 0]
    assert chosen == sorted(chosen)


def test_loss_falls_on_the_completion_only(probe_file: Path) -> None:
    windows = [w for w in build_windows(load_probes(probe_file)).windows if w.domain == 3]
    for window in windows:
        number = window.document_id.removeprefix("t")
        assert bytes(window.tokens.astype(np.uint8)) == f"say {number}{number}!".encode()
        # positions 0..5 predict tokens 1..6; the completion is tokens 5 and 6
        assert window.scored.tolist() == [False, False, False, False, True, True]


def test_the_seed_moves_documents_and_starts(probe_file: Path) -> None:
    text = probe_file.read_text()
    config = load_probes(probe_file)
    first = build_windows(config)
    other = build_windows(read_probes(text.replace("seed: 7", "seed: 8").encode(), probe_file))
    assert signature(first) != signature(other)
    canary = [[w.tokens.tolist() for w in s.windows if w.domain == 1] for s in (first, other)]
    assert sum(a != b for a, b in zip(*canary, strict=True)) >= 6


def test_windows_are_the_same_in_another_process(probe_file: Path) -> None:
    program = (
        "import sys, pathlib, hashlib; from moe_atlas.probes import *;"
        "s = build_windows(load_probes(pathlib.Path(sys.argv[1])));"
        "print(hashlib.sha256(repr([(w.domain, w.document, w.document_id, w.tokens.tolist(),"
        " w.scored.tolist()) for w in s.windows]).encode()).hexdigest(), 'torch' in sys.modules)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(probe_file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().split()[1] == "False"


def test_choice_and_starts_do_not_depend_on_the_order_of_the_source(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": prose(n, 50), "id": f"d{n}"} for n in range(12)]
    domain = "name: a, role: base, source: a.jsonl, documents: 6"
    write_rows(tmp_path / "a.jsonl", rows)
    before = cut(tmp_path, [domain])
    write_rows(tmp_path / "a.jsonl", rows[::-1])
    after = cut(tmp_path, [domain])
    assert {w.document_id: w.tokens.tolist() for w in before.windows} == {
        w.document_id: w.tokens.tolist() for w in after.windows
    }


def test_every_document_and_start_can_be_drawn(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"tokens": list(range(100 * n, 100 * n + 10))} for n in range(6)])
    drawn: set[str] = set()
    starts: list[int] = []
    for seed in range(60):
        sample = cut(tmp_path, ["name: a, role: base, source: a.jsonl, documents: 2"], 8, seed=seed)
        drawn |= {w.document_id for w in sample.windows}
        starts += [int(w.tokens[0]) % 100 for w in sample.windows]
    assert drawn == {"1", "2", "3", "4", "5", "6"}
    # 120 draws of 0, 1, 2: each expected 40 times, standard deviation 5.2
    assert all(20 <= starts.count(start) <= 60 for start in range(3))
    assert set(starts) == {0, 1, 2}


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 60),
    size=st.integers(2, 12),
    count=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_windows_of_a_document_are_disjoint(
    tmp_path_factory: pytest.TempPathFactory, length: int, size: int, count: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("w")
    write_rows(folder / "a.jsonl", [{"tokens": list(range(length))}])
    domain = "name: a, role: base, source: a.jsonl, documents: 1"
    if length < size * count:
        with pytest.raises(InputRefused) as caught:
            cut(folder, [domain], size, count, seed)
        assert caught.value.code == "E_PROBE_SHORT"
        return
    windows = cut(folder, [domain], size, count, seed).windows
    assert [w.document for w in windows] == [0] * count
    positions = [position for w in windows for position in w.tokens.tolist()]
    assert len(positions) == size * count == len(set(positions))
    assert all(np.diff(w.tokens).tolist() == [1] * (size - 1) for w in windows)


def test_rows_with_one_id_are_one_document(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": prose(n, 30), "id": "same" if n in (1, 3) else f"d{n}"} for n in range(5)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    sample = cut(tmp_path, ["name: a, role: base, source: a.jsonl, documents: 4"])
    assert [(w.document, w.document_id) for w in sample.windows] == [
        (0, "d0"),
        (1, "same"),
        (1, "same"),
        (2, "d2"),
        (3, "d4"),
    ]


@pytest.mark.parametrize("wanted", ["documents: 4", "documents: 1000000"])
def test_fewer_documents_than_asked_is_an_error(tmp_path: Path, wanted: str) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": prose(n, 30)} for n in range(3)])
    with pytest.raises(InputRefused) as caught:
        cut(tmp_path, [f"name: a, role: base, source: a.jsonl, {wanted}"])
    assert caught.value.code == "E_PROBE_COUNT"
    assert "holds 3" in caught.value.problem
    assert caught.value.where == "probes.yaml:7"


def test_an_empty_source_is_an_error_even_if_no_number_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(InputRefused) as caught:
        cut(tmp_path, ["name: a, role: base, source: a.jsonl"])
    assert caught.value.code == "E_PROBE_COUNT"


@pytest.mark.parametrize("role", ["base", "canary, max_nll_increase: 1"])
def test_short_documents_are_named(tmp_path: Path, role: str) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": prose(n, 9 if n % 2 else 7)} for n in range(9)])
    write_rows(tmp_path / "b.jsonl", [{"text": prose(50, 30)}])
    domains = ["name: b, role: base, source: b.jsonl", f"name: a, role: {role}, source: a.jsonl"]
    with pytest.raises(InputRefused) as caught:
        cut(tmp_path, domains)
    assert caught.value.code == "E_PROBE_SHORT"
    assert "5 of 9 documents are shorter than 8 tokens" in caught.value.problem
    assert "'1' (7), '3' (7), '5' (7) …" in caught.value.problem


def test_a_document_exactly_as_long_as_the_window_is_taken_whole(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "abcdefgh"}])
    windows = cut(tmp_path, ["name: a, role: base, source: a.jsonl"]).windows
    assert bytes(windows[0].tokens.astype(np.uint8)) == b"abcdefgh"


@pytest.mark.parametrize("per_document", [1, 3])
def test_prompts_in_base_domains_are_cut_where_something_is_scored(tmp_path: Path, per_document: int) -> None:
    """Base windows are of one length, and each of them predicts a token of the completion."""
    rows: list[dict[str, object]] = [
        {"prompt": prose(n, 200), "completion": prose(100 + n, 20 + n)} for n in range(30)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    windows = cut(tmp_path, ["name: a, role: base, source: a.jsonl"], per_document=per_document).windows
    assert len(windows) == 30 * per_document
    for window in windows:
        row = rows[int(window.document_id) - 1]
        text = bytes(window.tokens.astype(np.uint8)).decode()
        whole = f"{row['prompt']}{row['completion']}"
        start = whole.index(text)
        assert len(text) == 8
        assert window.scored.tolist() == [start + n >= 200 for n in range(1, 8)]
        assert window.scored.any()


def test_an_empty_completion_scores_nothing_and_is_refused(probe_file: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"say {n}", "completion": ""} for n in range(5)]
    write_rows(probe_file.parent / "sft.jsonl", rows)
    with pytest.raises(InputRefused, match="nothing that is scored") as caught:
        build_windows(load_probes(probe_file))
    assert caught.value.code == "E_PROBE_SHORT"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([prose(1, 30), prose(1, 30)], "its document holds the same tokens as one of 'a/1'"),
        (["x" * 30], "two of its own windows hold the same tokens"),
        (["x" * 16 + prose(1, 1), "y" * 16, "x" * 16], "own windows"),
    ],
)
def test_a_document_met_before_would_count_twice(tmp_path: Path, rows: list[str], problem: str) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": row} for row in rows])
    with pytest.raises(InputRefused) as caught:
        cut(tmp_path, ["name: a, role: base, source: a.jsonl"], per_document=2)
    assert caught.value.code == "E_PROBE_DUPLICATE"
    assert problem in caught.value.problem


def test_the_same_window_in_two_domains_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "abcdefgh"}])
    write_rows(tmp_path / "b.jsonl", [{"text": "abcdefgh", "id": "copy"}])
    domains = [f"name: {name}, role: base, source: {name}.jsonl" for name in "ab"]
    with pytest.raises(InputRefused) as caught:
        cut(tmp_path, domains)
    assert caught.value.code == "E_PROBE_DUPLICATE"
    assert caught.value.where == "'b/copy'"
    assert "'a/1'" in caught.value.problem


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "abcdefgh"}])
    with pytest.raises(InputRefused) as caught:
        cut(tmp_path, ["name: a, role: base, source: a.jsonl"], byte=False)
    assert caught.value.code == "E_PROBE_TOKENIZER"


@pytest.mark.parametrize("source", ["../a.jsonl", "{absolute}/a.jsonl", "sub/a.jsonl"])
def test_sources_are_relative_to_the_probe_file(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    place = (folder / source.format(absolute=tmp_path)).resolve()
    place.parent.mkdir(exist_ok=True)
    write_rows(place, [{"text": "abcdefgh"}])
    source = source.format(absolute=tmp_path)
    assert len(cut(folder, [f"name: a, role: base, source: '{source}'"]).windows) == 1
