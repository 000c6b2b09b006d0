"""An explanation finds what transformers and plain counting find, needs the registered documents, and is inert."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from moe_atlas.api import AuditOptions, baseline
from moe_atlas.cli import run
from moe_atlas.errors import Exit
from moe_atlas.explanation import explain as explaining
from moe_atlas.explanation import html, terminal
from moe_atlas.explanation.evidence import load_evidence
from moe_atlas.explanation.explain import explain
from moe_atlas.explanation.sentences import NO_TOKENS, TEXT_INSIDE
from moe_atlas.probes.registration import load_registered, register
from moe_atlas.receipt.files import token_path
from scripts.oracle import tiny
from tests.explanation.documents_of_a_pair import LENGTH, audited

LIVE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]|^\s*::|##\[", re.M
)


@pytest.fixture(scope="module")
def oracles(base, tuned, probes):
    """By window: losses of every token (NaN where not scored) and, by layer, routed sets in rank order; both sides."""
    models = [tiny.load_reference(folder) for folder in (base, tuned)]
    rows = []
    for window in load_registered(probes).windows:
        tokens = torch.from_numpy(window.tokens)[None]
        sides = []
        for model in models:
            oracle = tiny.oracle(model, tokens)
            nll = torch.nn.functional.cross_entropy(
                oracle.logits[0, :-1].double(), tokens[0, 1:], reduction="none"
            )
            loss = np.concatenate([[np.nan], np.where(window.scored, nll.numpy(), np.nan)])
            sides.append((loss, {layer: ids.tolist() for layer, ids in oracle.sets.items()}))
        rows.append((window, *sides))
    return rows


def increase(row) -> np.ndarray:
    return row[2][0] - row[1][0]


def test_the_worst_documents_are_those_that_transformers_finds(found, oracles, probes):
    names = [domain.name for domain in load_registered(probes).config.domains]
    damage: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for row in oracles:
        of = damage[names[row[0].domain]].setdefault(row[0].document_id, [])
        of.append(float(np.nanmean(increase(row))))
    for domain in found.domains:
        expected = {name: np.mean(values) for name, values in damage[domain.name].items()}
        order = sorted(expected, key=lambda name: -expected[name])
        assert [document.name for document in domain.documents] == order
        for document in domain.documents:
            assert document.increase == pytest.approx(expected[document.name], abs=1e-5)
        assert domain.quantiles[2] == pytest.approx(np.median(list(expected.values())), abs=1e-5)
    assert max(document.increase for document in found.domains[0].documents) > 0.05


def test_every_piece_of_a_passage_has_its_text_its_loss_and_its_moves(found, oracles, probes):
    rows = {}
    for row in oracles:
        rows.setdefault(row[0].document_id, []).append(row)
    shown = [passage for of_domain in found.passages.values() for passage in of_domain]
    assert len(shown) == 2 * sum(len(domain.worse[:3]) for domain in found.domains[:2])
    for passage in shown:
        row = rows[passage.document][passage.window - 1]
        ids, change = row[0].tokens, increase(row)
        text = bytes(ids.tolist()).decode("utf-8", "replace")
        assert "".join(piece.text for piece in passage.pieces) == text
        moved = [
            sum(set(row[1][1][layer][s]) != set(row[2][1][layer][s]) for layer in row[1][1])
            for s in range(len(ids))
        ]
        at = 0
        for piece in passage.pieces:
            stop = at + (1 if piece.text == "\ufffd" else len(piece.text.encode("utf-8")))
            parts = change[at:stop]
            if np.isnan(parts).all():
                assert piece.increase is None
            else:
                assert piece.increase == pytest.approx(np.nansum(parts), rel=2e-3, abs=1e-4)
            assert piece.moved == max(moved[at:stop])
            at = stop
        assert at == len(ids)


def test_a_passage_of_part_of_a_window_is_that_part_where_most_was_lost(receipt, probes, found):
    short = explain(load_evidence(receipt, probes), receipt, worst=3, length=16)
    whole = [one for of in found.passages.values() for one in of]
    parts = [one for of in short.passages.values() for one in of]
    assert any(part.first for part in parts)
    for part, one in zip(parts, whole, strict=True):
        assert part.first + 16 + part.behind == LENGTH
        if "".join(piece.text for piece in one.pieces).isascii():
            assert part.pieces == one.pieces[part.first : part.first + 16]
            gained = [max(piece.increase or 0.0, 0.0) for piece in one.pieces]
            sums = [sum(gained[start : start + 16]) for start in range(LENGTH - 15)]
            assert sums[part.first] == pytest.approx(max(sums))


def test_categories_are_those_of_plain_counting(found, oracles):
    counts = Counter(int(token) for row in oracles for token in row[0].tokens)
    bands = {"once": range(1, 2), "2 to 9 times": range(2, 10), "10 to 99 times": range(10, 100)}
    sums: dict[tuple, list] = {}
    gained = Counter()
    domains = ["prose", "code", "sft"]
    for row in oracles:
        change, name, size = increase(row), domains[row[0].domain], len(row[0].tokens)
        for s, token in enumerate(row[0].tokens.tolist()):
            if np.isnan(change[s]):
                continue
            band = next((b for b, held in bands.items() if counts[token] in held), "100 times and more")
            place = ("first", "second", "third", "last")[4 * s // size] + " quarter"
            character = bytes([token]).decode("utf-8", "replace")
            kind = (
                "white space" if character.isspace()
                else "letters" if character.isalpha()
                else "digits" if character.isdigit()
                else "mixed or part of a character" if token > 127 or token < 32
                else "punctuation"
            )  # fmt: skip
            layers = row[1][1]
            moved = np.mean([set(layers[n][s]) != set(row[2][1][n][s]) for n in layers])
            gained[name] += max(change[s], 0.0)
            for category in (band, place, kind):
                sums.setdefault((name, category), []).append((row[1][0][s], change[s], moved))
    shown = {(name, one.name): one for name, of in found.categories.items() for one in of}
    assert shown.keys() == sums.keys()
    for key, values in sums.items():
        one, (base, change, moved) = shown[key], np.mean(values, axis=0)
        assert one.tokens == len(values)
        assert (one.base, one.increase) == pytest.approx((base, change), abs=2e-3)
        assert one.moved == pytest.approx(moved)
        share = sum(max(value[1], 0.0) for value in values) / gained[key[0]]
        assert one.share == pytest.approx(share, rel=1e-2, abs=1e-3)


def test_flows_are_those_of_plain_counting(found, oracles):
    for layer in found.flows:
        flows, load, changed, tokens = Counter(), Counter(), 0, 0
        for row in oracles:
            if row[0].domain > 1:  # a task
                continue
            for before, after in zip(row[1][1][layer.layer], row[2][1][layer.layer], strict=True):
                load.update(before)
                lost = [e for e in before if e not in after]
                gained = [e for e in after if e not in before]
                flows.update(zip(lost, gained, strict=True))
                changed, tokens = changed + bool(lost), tokens + 1
        assert layer.changed == pytest.approx(changed / tokens)
        assert layer.pairs == len(flows)
        assert layer.replaced == pytest.approx(sum(flows.values()) / sum(load.values()))
        order = sorted(flows, key=lambda pair: (-flows[pair], pair))[: explaining.FLOWS]
        assert [(f.lost, f.gained) for f in layer.largest] == order
        assert [(f.tokens, f.of) for f in layer.largest] == [(flows[p], load[p[0]]) for p in order]
        assert changed


def said(explanation) -> str:
    console = Console(width=120, record=True, highlight=False, markup=False, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.render(explanation, console)
    return console.export_text()


def test_base_against_itself_is_zero_and_says_so(root, base, probes):
    receipt = audited(root / "itself", base, base, probes)
    same = explain(load_evidence(receipt, probes), receipt, worst=3, length=100)
    assert all(document.increase == 0 for domain in same.domains for document in domain.documents)
    assert not any(same.passages.values())
    assert all(layer.replaced == layer.changed == layer.pairs == 0 for layer in same.flows)
    assert all(one.increase == one.moved == 0 for of in same.categories.values() for one in of)
    for text in (said(same), page_of(same).text):
        assert text.count("every document has exactly the same loss in both checkpoints") == 3
        assert "no routed set changed, at any token of the base domains in any layer" in text


def test_without_token_data_documents_are_named_and_the_lack_is_said(receipt, probes, found, tmp_path):
    shutil.copytree(receipt.parent, tmp_path, dirs_exist_ok=True)
    token_path(tmp_path / receipt.name).unlink()
    less = explain(load_evidence(tmp_path / receipt.name, probes), receipt, worst=3, length=100)
    assert less.domains == found.domains
    assert (less.spreads, less.categories, less.flows) == ({}, {}, [])
    text = said(less)
    assert NO_TOKENS in " ".join(text.split())
    assert found.domains[0].documents[0].name in text
    assert all(piece.increase is None for of in less.passages.values() for p in of for piece in p.pieces)
    assert "The text is not shaded: there are no token data." in page_of(less).text


def test_neither_receipt_nor_data_hold_text_or_token_ids(receipt, probes):
    raw = b"".join(path.read_bytes() for path in receipt.parent.iterdir())
    assert b"prose" in raw
    for window in load_registered(probes).windows:
        ids = window.tokens[:14]
        for dtype in ("u1", "<u2", "<i4", "<f2", "<f8"):
            assert ids.astype(dtype).tobytes() not in raw


class Page(HTMLParser):
    """Tags and text of a page; nesting must be proper."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def page_of(explanation) -> Page:
    return Page(html.page(explanation))


def test_text_of_documents_is_inert_in_a_terminal(hostile, monkeypatch):
    monkeypatch.setattr(terminal, "SHOWN", 100)
    text = said(hostile)
    assert LIVE.search(text) is None
    assert r"\x1b[31m" in text
    assert r"\u202e" in text
    assert r"##\x5b" in text


def test_text_of_documents_is_inert_on_a_page(hostile, found):
    page, plain = page_of(hostile), page_of(found)
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.text) is None
    assert "<script>alert(1)</script>" in page.text
    assert r"\u202e" in page.text


def test_the_command_shows_writes_and_warns(receipt, probes, tmp_path, capsys):
    assert run(["explain", str(receipt), "--probe", str(probes)]) == Exit.PASS
    said = capsys.readouterr().out
    assert TEXT_INSIDE in said
    assert said.count("Which experts took over whose tokens") == 1
    assert "nats a byte" in said
    assert "nats a token" not in said
    path = tmp_path / "page.html"
    for way in (["-o", str(path)], ["--out", str(path), "--force"], ["--format", f"html={path}", "--force"]):
        assert run(["explain", str(receipt), "--probe", str(probes), *way]) == Exit.PASS
        assert TEXT_INSIDE in capsys.readouterr().out
        assert TEXT_INSIDE in Page(path.read_text()).text
        written = path.read_text()
        path.write_text("")
    assert run(["explain", str(receipt), "--probe", str(probes), "--format", "html"]) == Exit.PASS
    assert capsys.readouterr().out == written


def changed_source(place: Path) -> None:
    source = place / "probe/of-prose.jsonl"
    source.write_text(source.read_text().replace("that", "thot"))


def registered_anew(place: Path) -> None:
    changed_source(place)
    register(place / "probe/probes.yaml", force=True)


REFUSALS = {
    "a document changed": (changed_source, Exit.REFUSED, "E_PROBE_LOCK .*differs from its lock"),
    "another registration": (registered_anew, Exit.REFUSED, "E_PROBE_LOCK .*registers other documents"),
    "no documents": (lambda p: (p / "probe/of-code.jsonl").unlink(), Exit.REFUSED, "E_PROBE_SOURCE"),
    "no lock": (lambda p: (p / "probe/probes.lock.json").unlink(), Exit.USAGE, "E_PROBE_UNREGISTERED"),
    "no probe": (lambda p: (p / "probe/probes.yaml").unlink(), Exit.USAGE, "E_PROBE_MISSING"),
    "token data changed": (
        lambda p: token_path(p / "receipt.json").write_bytes(b"x"), Exit.CHANGED, "E_RECEIPT .*evidence.tokens",
    ),
    "no window data": (lambda p: (p / "receipt.windows.safetensors").unlink(), Exit.CHANGED, "E_RECEIPT"),
    "a page that is there": (lambda p: (p / "page.html").write_text("mine"), Exit.USAGE, "E_EXISTS"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "code", "line"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_explained_is_refused_in_one_line(
    receipt, probes, tmp_path, capsys, change, code, line
):
    shutil.copytree(receipt.parent, tmp_path, dirs_exist_ok=True)
    shutil.copytree(probes.parent, tmp_path / "probe")
    change(tmp_path)
    there = set(tmp_path.iterdir())
    arguments = ["--probe", str(tmp_path / "probe/probes.yaml"), "-o", str(tmp_path / "page.html")]
    assert run(["explain", str(tmp_path / "receipt.json"), *arguments]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(line, said)
    assert set(tmp_path.iterdir()) == there


@pytest.mark.parametrize("output", ["-opage.md", "--format=junit=atlas.xml", "--format=pdf"])
def test_other_formats_are_refused(receipt, probes, capsys, output):
    assert run(["explain", str(receipt), "--probe", str(probes), output]) == Exit.USAGE
    assert "E_FORMAT" in capsys.readouterr().err


def test_a_baseline_is_refused(base, probes, tmp_path, capsys):
    path = tmp_path / "baseline.json"
    baseline(base, probes, receipt=path, options=AuditOptions(dtype="float32", threads=1))
    assert run(["explain", str(path), "--probe", str(probes)]) == Exit.USAGE
    assert re.search(
        "E_KIND .*a baseline, which compares nothing; give the receipt of an audit", capsys.readouterr().err
    )
