"""A tiny pair, documents that both models read as bytes, and explanations of audits of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moe_atlas.explanation.evidence import load_evidence
from moe_atlas.explanation.explain import explain
from moe_atlas.explanation.passages import passages
from moe_atlas.probes.registration import register
from scripts.oracle import tiny
from tests.explanation.documents_of_a_pair import HOSTILE, LENGTH, WIDE, audited, odd_text, registered, texts
from tests.support import pairs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("explain")


@pytest.fixture(scope="module")
def base(root):
    return tiny.save("qwen3_moe", root / "base", seed=5, vocab_size=256)


@pytest.fixture(scope="module")
def tuned(root, base):
    return pairs.variant(base, root / "tuned", pairs.jitter(0.2, lambda name: "norm" not in name))


@pytest.fixture(scope="module")
def probes(root):
    return registered(root / "probe", {"prose": [odd_text(), *texts(1, 6, WIDE)], "code": texts(2, 6)})


@pytest.fixture(scope="module")
def receipt(root, base, tuned, probes):
    return audited(root / "audited", base, tuned, probes)


@pytest.fixture(scope="module")
def found(receipt, probes):
    return explain(load_evidence(receipt, probes), receipt, worst=3, length=1000)


@pytest.fixture(scope="module")
def hostile(root, base, tuned):
    """Documents, and their names, that try to do something to a screen, a log or a page."""
    documents = [f"{payload} {n} {payload}".ljust(2 * LENGTH, ".") for n, payload in enumerate(HOSTILE)]
    probes = registered(root / "hostile", {"bad": documents})
    source = probes.parent / "of-bad.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    renamed = [row | {"id": payload} for row, payload in zip(rows, HOSTILE, strict=True)]
    source.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    register(probes, force=True)
    receipt = audited(root / "of-hostile", base, tuned, probes)
    evidence = load_evidence(receipt, probes)
    found = explain(evidence, receipt, worst=5, length=1000)
    every = [one for document in found.domains[0].documents for one in passages(evidence, document, 1000)]
    return replace(found, passages={"bad": every})
