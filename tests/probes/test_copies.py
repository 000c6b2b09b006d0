"""Near-copies are one document; templates, licences and answers that honest documents share make no copy."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from probe_files import write_rows
from test_windows import SMALL, cut

from moe_atlas.cli import run
from moe_atlas.errors import InputRefused
from moe_atlas.probes import Sample, build_windows, load_registered, register
from moe_atlas.probes.documents import near_copies as copies_module
from moe_atlas.probes.documents.near_copies import Text, across, clustered, common_opening, shingle_length
from moe_atlas.probes.load import read_probes
from moe_atlas.receipt.canonical import encode_receipt
from scripts.oracle import tiny
from tests.support import pairs

BASE = "name: a, role: base, source: a.jsonl"
TASK = "name: t, role: task, source: t.jsonl, success: {metric: nll, at_most: 2}"


def words(seed: int, count: int) -> str:
    """Text in words that two seeds share, in an order that they do not."""
    return " ".join(random.Random(seed).choices([f"w{n:03d}" for n in range(400)], k=count))


def documents(sample: Sample, domain: int = 0) -> int:
    return len({window.document for window in sample.windows if window.domain == domain})


def counted(folder: Path, texts: Sequence[str], tokens: int = 96, **options: int) -> int:
    write_rows(folder / "a.jsonl", [{"text": text} for text in texts])
    return documents(cut(folder, [BASE], tokens, **options))


PASSAGE = words(0, 40)
KINDS = {
    "behind a prefix": [f"{words(n, 4)} {PASSAGE}" for n in range(1, 51)],
    "before a suffix": [f"{PASSAGE} {words(n, 4)}" for n in range(1, 51)],
    "shifted by a byte": ["x" * n + PASSAGE[: 199 - n] for n in range(1, 51)],
    "cut elsewhere": [PASSAGE[n : n + 150] for n in range(45)],
    "a number changed": [PASSAGE.replace("w", f"{n}w", 1) for n in range(50)],
    "one word of twenty changed": [PASSAGE[:95] + f"{n:05d}" + PASSAGE[100:] for n in range(1, 51)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_passage_in_many_spellings_is_one_document(kind: str, tmp_path: Path) -> None:
    assert counted(tmp_path, KINDS[kind]) == 1


def test_a_long_text_is_one_document_though_its_windows_lie_apart(tmp_path: Path) -> None:
    long = words(0, 2000)
    assert counted(tmp_path, [f"{words(n, 3)} {long}" for n in range(1, 21)]) == 1


def test_chunks_that_overlap_by_more_than_half_are_one_document(tmp_path: Path) -> None:
    text = words(0, 200)
    chunks = [text[begin : begin + 300] for begin in range(0, 700, 100)]
    assert counted(tmp_path, chunks, tokens=128) == 1


def test_documents_shuffled_out_of_the_same_paragraphs_do_not_count(tmp_path: Path) -> None:
    paragraphs = [words(n, 30) for n in range(7)]
    texts = ["\n".join(random.Random(n).sample(paragraphs, 7)) for n in range(20)]
    assert counted(tmp_path, texts) == 1


def test_honest_documents_count_each(tmp_path: Path) -> None:
    assert counted(tmp_path, [words(n, 60) for n in range(50)]) == 50


def test_a_licence_in_front_of_honest_documents_makes_no_copies(tmp_path: Path) -> None:
    licence = words(0, 40)
    assert counted(tmp_path, [f"{licence}\n{words(n, 60)}" for n in range(1, 41)], tokens=400) == 40


def test_near_copies_share_the_number_of_the_first_and_others_keep_theirs(tmp_path: Path) -> None:
    texts = [words(1, 60), PASSAGE, words(2, 60), f"new {PASSAGE}"]
    write_rows(tmp_path / "a.jsonl", [{"text": text, "id": f"d{n}"} for n, text in enumerate(texts)])
    sample = cut(tmp_path, [BASE], 96)
    assert [window.document for window in sample.windows] == [0, 1, 2, 1]
    assert [[(m.document_id, m.where) for m in cluster] for cluster in sample.copies[0]] == [
        [("d1", "a.jsonl:2"), ("d3", "a.jsonl:4")]
    ]


def cut_with_task(folder: Path, tokens: int) -> Sample:
    domains = f"  - {{{BASE}}}\n  - {{{TASK}}}"
    text = SMALL.format(tokenizer="tokenizer: bytes", tokens=tokens, per_document=1, seed=1, domains=domains)
    return build_windows(read_probes(text.replace("  task: none\n", "").encode(), folder / "probes.yaml"))


def task(folder: Path, rows: Sequence[tuple[str, str]]) -> int:
    write_rows(folder / "t.jsonl", [{"prompt": prompt, "completion": answer} for prompt, answer in rows])
    write_rows(folder / "a.jsonl", [{"text": words(9999, 60)}])
    return documents(cut_with_task(folder, 96), 1)


TEMPLATE = f"System: {words(0, 60)}\nUser: "


@pytest.mark.parametrize(
    "rows",
    [
        [(f"{TEMPLATE}{words(n, 12)}\nAssistant: ", words(-n, 12)) for n in range(1, 41)],
        [(f"{TEMPLATE}{words(n, 12)}\nAssistant: ", ["yes", "no"][n % 2]) for n in range(1, 41)],
        [(f"{TEMPLATE}{words(n, 20)}\nAssistant: ", words(7, 12)) for n in range(1, 41)],
        [(f"{PASSAGE}\nQuestion: {words(n, 8)}\n", words(-n, 8)) for n in range(1, 41)],
    ],
    ids=["a template", "labels", "one refusal", "questions about one passage"],
)
def test_what_honest_prompts_and_answers_share_makes_no_copies(
    rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert task(tmp_path, rows) == 40


def test_one_question_asked_again_behind_a_prefix_is_one_document(tmp_path: Path) -> None:
    rows = [(f"{n} {words(n, 4)} {PASSAGE}", f"the answer: {words(3, 12)}") for n in range(1, 41)]
    assert task(tmp_path, rows) == 1


def test_a_base_domain_that_repeats_another_is_refused_by_name(tmp_path: Path) -> None:
    for name, prefix in (("a", ""), ("b", "so: ")):
        write_rows(
            tmp_path / f"{name}.jsonl",
            [{"text": prefix + words(n, 22), "id": f"{name}{n}"} for n in range(20)],
        )
    with pytest.raises(InputRefused, match="E_PROBE_DUPLICATE") as caught:
        cut(tmp_path, [f"name: {name}, role: base, source: {name}.jsonl" for name in "ab"], 96)
    assert "20 of its 20 documents" in caught.value.problem
    assert "'a0' in 'b/b0'" in caught.value.problem


def test_a_task_document_that_stands_in_the_base_is_said(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": words(n, 60)} for n in range(20)])
    rows = [(f"Continue {n}: {words(n, 50)[:120]}", words(n, 50)[120:]) for n in (3, *range(100, 119))]
    write_rows(tmp_path / "t.jsonl", [{"prompt": p, "completion": c, "id": f"t{c[:4]}"} for p, c in rows])
    sample = cut_with_task(tmp_path, 290)
    assert [len(pairs) for pairs in sample.elsewhere] == [1, 1]
    assert sample.elsewhere[1][0][1] == "a/4"


def test_the_lock_names_near_copies_and_is_checked_again(
    probe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = words(0, 9)
    write_rows(probe_file.parent / "prose.jsonl", [{"text": f"{n}{text}"} for n in range(10, 15)])
    lock = register(probe_file)
    prose = lock.body["domains"][0]
    assert [[member["where"] for member in cluster] for cluster in prose["near_copies"]] == [
        [f"prose.jsonl:{n}" for n in range(1, 6)]
    ]
    row = lock.overlaps()[0]
    assert (row["domain"], row["given"], row["counted"], len(row["clusters"][0])) == ("prose", 5, 1, 4)
    assert len({w.document for w in load_registered(probe_file).windows if w.domain == 0}) == 1
    assert run(["register", str(probe_file)]) == 0
    out = capsys.readouterr().out
    assert "prose (base): 5 windows of 1 documents" in out
    assert "5 documents count as 1: near-copies are one document (among them 'prose.jsonl:1'" in out


def test_the_length_of_a_shingle() -> None:
    assert shingle_length(512, 50_000) == 8
    assert shingle_length(512, 255) == 32
    assert shingle_length(12, 255) == 6
    assert shingle_length(2, 50_000) == 1


def test_a_common_opening() -> None:
    prompts = [np.array(ids) for ids in ([1, 2, 3, 4], [1, 2, 9], [1, 2, 3])]
    assert common_opening(prompts) == 2
    assert common_opening(prompts[:1]) == 0
    assert common_opening([prompts[0], prompts[0]]) == 4


@pytest.mark.parametrize("shared", [20, 40, 53, 54, 80])
def test_half_of_the_shingles_decides(shared: int) -> None:
    rng = np.random.default_rng(shared)
    one, other = rng.integers(0, 50_000, 100), rng.integers(0, 50_000, 100)
    other[:shared] = one[:shared]
    texts = [Text(0, one), Text(1, other)]
    copy = (shared - 8 + 1) / (100 - 8 + 1) >= 0.5
    assert clustered(texts, 8, np.arange(2)).tolist() == ([0, 0] if copy else [0, 1])
    assert across(texts, [0, 1], 8) == ([(0, 1), (1, 0)] if copy else [])


def test_beyond_the_bound_on_memory_a_sample_of_hashes_decides_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [Text(n, rng.integers(0, 50_000, 4000)) for n in range(20)]
    texts += [Text(20 + n, np.r_[rng.integers(0, 50_000, 300), texts[n].tokens]) for n in range(20)]
    exact = clustered(texts, 8, np.arange(40))
    monkeypatch.setattr(copies_module, "MOST", 1 << 14)
    assert clustered(texts, 8, np.arange(40)).tolist() == exact.tolist() == [*range(20), *range(20)]


def overlapping(folder: Path) -> Path:
    """A registered probe set of one base domain of 40 documents, of which three are one."""
    texts = [words(n, 30) for n in range(38)] + [f"so {words(0, 30)}", f"thus {words(0, 30)}"]
    rows: list[dict[str, object]] = [{"tokens": [ord(c) % 48 for c in text[:150]]} for text in texts]
    write_rows(folder / "prose.jsonl", rows)
    path = folder / "probes.yaml"
    domain = {"name": "prose", "role": "base", "source": "prose.jsonl", "documents": 40}
    config = {
        "schema": "atlas/probes/v1",
        "name": "tiny",
        "windows": {"tokens": 128, "per_document": 1, "seed": 7},
        "protected_layers": "all",
        "domains": [domain],
        "policy": pairs.POLICY,
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    register(path)
    return path


def test_the_receipt_counts_clusters_says_so_and_is_held_against_the_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = overlapping(tmp_path)
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=1)
    out = tmp_path / "receipt.json"
    run(["audit", str(base), str(base), "--probe", str(probe), "--receipt", str(out), "--quiet"])
    receipt = json.loads(out.read_text())
    assert receipt["domains"][0]["windows"] == 40
    assert receipt["domains"][0]["documents"] == 38
    assert receipt["probe"]["overlaps"][0]["given"] == 40
    warning = next(one for one in receipt["warnings"] if one["code"] == "near-copies")
    assert "domain 'prose': 40 documents count as 38" in warning["message"]
    assert "'prose.jsonl:1', 'prose.jsonl:39', 'prose.jsonl:40'" in warning["message"]
    assert run(["verify", str(out), "--probe", str(probe), "--integrity-only"]) == 0
    capsys.readouterr()
    edited = receipt | {"probe": receipt["probe"] | {"overlaps": []}}
    out.write_bytes(encode_receipt(edited))
    assert run(["verify", str(out), "--probe", str(probe)]) == 5
    assert "probe.overlaps" in capsys.readouterr().out
