"""Experts replaced by fresh ones are named; experts that only come near the look of fresh ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_atlas.weights import identity
from moe_atlas.weights.identity import ExpertTraits, layer_identity, looks_initialised, sketch

EXPERTS = 6


def drawn(seed, spread):
    """An expert of two matrices whose norms disperse by `spread` beyond what iid entries give."""
    generator = torch.Generator().manual_seed(seed)
    matrices = []
    for rows, columns in ((48, 32), (32, 48)):
        scale = torch.exp(spread * torch.randn(rows, 1, generator=generator))
        scale = scale * torch.exp(spread * torch.randn(1, columns, generator=generator))
        matrices.append(scale * torch.randn(rows, columns, generator=generator))
    return matrices


def fresh(expert):
    return looks_initialised(expert, [np.square(matrix.double().numpy()).sum(1) for matrix in expert])


def accounts(base, tuned, match=None):
    match_E = None if match is None else torch.tensor(match)
    return layer_identity(3, traits(base), traits(tuned), match_E)


def traits(experts):
    sketches_EN = torch.stack([sketch(expert) for expert in experts])
    untrained = [e for e, expert in enumerate(experts) if fresh(expert)]
    return ExpertTraits(sketches_EN, clones=[], initialised=untrained, zeroed=[])


def kinds(account):
    return [breach["kind"] for breach in account["breaches"]]


BASE = [drawn(seed, 0.4) for seed in range(EXPERTS)]


def test_a_fresh_expert_in_place_of_a_trained_one_is_named():
    account = accounts(BASE, [*BASE[:4], drawn(99, 0.0), BASE[5]])
    assert account["init_like"] == {"base": [], "tuned": [4]}
    assert "init-like-experts" in kinds(account)
    assert "[4]" in next(b["detail"] for b in account["breaches"] if b["kind"] == "init-like-experts")


def test_a_light_tune_that_crosses_the_line_is_no_breach():
    """The norms are evened out, which looks as initialised, but every entry keeps its sign and its neighbours."""
    evened = [matrix / matrix.norm(dim=1, keepdim=True) for matrix in BASE[4]]
    evened = [matrix / matrix.norm(dim=0, keepdim=True) for matrix in evened]
    account = accounts(BASE, [*BASE[:4], evened, BASE[5]])
    assert account["init_like"]["tuned"] == [4]
    assert "init-like-experts" not in kinds(account)


def test_an_expert_that_was_untrained_before_is_no_breach_wherever_it_went():
    base = [*BASE[:5], drawn(7, 0.0)]
    match = [5, 0, 1, 2, 3, 4]
    tuned = [base[match.index(e)] for e in range(EXPERTS)]
    account = accounts(base, tuned, match)
    assert account["init_like"] == {"base": [5], "tuned": [4]}
    assert kinds(account) == []


@pytest.mark.parametrize("shape", [(48, 32), (256, 1024)])
@pytest.mark.parametrize("piece", [identity.PIECE, 200])
def test_rows_and_columns_count_each(shape, piece, monkeypatch):
    monkeypatch.setattr(identity, "PIECE", piece)
    rows, columns = shape
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert fresh([plain]) is fresh([plain.bfloat16()]) is True
    stretched = torch.ones(shape)
    stretched[: rows // 2] = 1.5
    assert fresh([plain * stretched]) is fresh([plain, plain * stretched]) is False
    stretched = torch.ones(shape)
    stretched[:, : columns // 2] = 1.5
    assert fresh([plain * stretched]) is fresh([plain, plain * stretched]) is False
    stretched = torch.ones(shape)
    stretched[: rows // 2, : columns // 2] = stretched[rows // 2 :, columns // 2 :] = (
        1.5  # all norms are alike
    )
    assert fresh([plain * stretched]) is True
