"""How the probe windows are cut into batches: the same windows, whole, and numbers that do not depend on it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from moe_atlas.auditing import run
from moe_atlas.auditing.cost import memory
from moe_atlas.auditing.layer.batches import partition
from moe_atlas.probes.windows import Window
from scripts.oracle import tiny
from tests.support import pairs


def windows(lengths):
    return [
        Window(0, n, str(n), np.arange(length), np.ones(length - 1, dtype=bool))
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "measured", "limit", "expected"),
    [
        ([4, 4, 4, 4, 4], 5, 8, [(0, 2), (2, 2), (4, 1)]),
        ([4, 4, 4, 4], 4, 7, [(0, 1), (1, 1), (2, 1), (3, 1)]),
        ([4, 4, 4, 4], 4, 1, [(0, 1), (1, 1), (2, 1), (3, 1)]),  # one window at least
        ([4, 4, 4, 4], 2, 100, [(0, 2), (2, 2)]),  # measured and other windows never share a batch
        ([4, 4, 3, 3, 5], 2, 100, [(0, 2), (2, 2), (4, 1)]),  # windows of one length only
        ([4, 4], 0, 100, [(0, 2)]),
    ],
)
def test_consecutive_windows_of_one_length_up_to_the_limit(lengths, measured, limit, expected):
    batches = partition(windows(lengths), measured, limit)
    assert [(batch.first, len(batch.tokens_WS)) for batch in batches] == expected
    assert [batch.measured for batch in batches] == [first < measured for first, _ in expected]
    assert [n for batch in batches for n in batch.windows] == list(range(len(lengths)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    base = tiny.save("deepseek_v3", root / "base", seed=3)
    tuned = pairs.variant(base, root / "tuned", pairs.jitter(0.2, lambda name: True))
    return base, tuned, pairs.probe(root / "probe", documents=7)


def test_numbers_do_not_depend_on_the_batches(place, monkeypatch):
    """Quantiles, cells and tails pool the whole layer, and draws go by the window's own number."""
    facts, arrays = pairs.audited(*place, dtype="float32")
    monkeypatch.setattr(run, "partition", partial(partition, limit=50))
    cut_facts, cut = pairs.audited(*place, dtype="float32")
    assert arrays.keys() == cut.keys()
    for name, values in arrays.items():
        assert np.allclose(values, cut[name], rtol=2e-4, atol=2e-6, equal_nan=True), name
    for layer, other in zip(facts["layers"], cut_facts["layers"], strict=True):
        for side in ("base", "tuned"):
            assert other[side] == pytest.approx(layer[side], rel=1e-4, abs=1e-6)


def test_bits_do_not_depend_on_the_memory_at_hand(place, monkeypatch):
    """Experts are read again for every round of batches that fits."""
    monkeypatch.setattr(run, "partition", partial(partition, limit=50))
    facts, arrays = pairs.audited(*place, dtype="float32")
    monkeypatch.setattr(memory, "held_tokens", lambda limit, room: 1)
    tight_facts, tight = pairs.audited(*place, dtype="float32")
    for name, values in arrays.items():
        assert np.array_equal(values, tight[name], equal_nan=True), name
    assert tight_facts["weights"] == facts["weights"]
    assert tight_facts["layers"] == facts["layers"]
    read = [f["checkpoints"]["base"]["bytes_read"] for f in (facts, tight_facts)]
    assert read[1] > read[0]
