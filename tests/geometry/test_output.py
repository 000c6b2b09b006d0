"""Output observables from a vocabulary that passes in parts, against whole rows of float64 log-probabilities."""

from __future__ import annotations

import pytest
import torch

from moe_atlas.replay import loss

VOCAB, LENGTH = 50, 23


def logits_of(seed):
    return torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def measured(logits, monkeypatch, part, positions=5):
    monkeypatch.setattr(loss, "PART", part)
    scored_S = torch.arange(LENGTH - 1) % 3 != 1
    chosen = scored_S.nonzero().squeeze(1).split(positions)
    pieces = [loss.OutputSums(tokens()[1:][chosen_P], list(logits)) for chosen_P in chosen]
    for rows in loss.vocabulary_parts(VOCAB):
        for chosen_P, piece in zip(chosen, pieces, strict=True):
            here = {name: logits_SV[chosen_P, rows.start : rows.stop] for name, logits_SV in logits.items()}
            piece.add(here, rows.start)
    return loss.window_outputs(pieces), scored_S


def tokens():
    return torch.randint(0, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("part", [1, 7, 49, 50, 64])
def test_parts_of_the_vocabulary_add_up_to_whole_rows(part, monkeypatch):
    logits = {"base": logits_of(0), "tuned": logits_of(0) + 0.1 * logits_of(1)}
    found, scored_S = measured(logits, monkeypatch, part)
    targets = tokens()[1:][scored_S]
    rows = {name: x.double().log_softmax(-1)[:-1][scored_S] for name, x in logits.items()}
    for name, log_PV in rows.items():
        assert found[f"nll_{name}"] == pytest.approx(
            float(-log_PV.gather(1, targets[:, None]).mean()), abs=1e-6
        )
        assert found[f"token_accuracy_{name}"] == float((log_PV.argmax(-1) == targets).double().mean())
    shift_P = (rows["base"].exp() * (rows["base"] - rows["tuned"])).sum(-1)
    assert found["kl"] == pytest.approx(float(shift_P.mean()), abs=1e-7)
    agree = (rows["base"].argmax(-1) == rows["tuned"].argmax(-1)).double().mean()
    assert found["top1_agreement"] == float(agree)


def test_equal_checkpoints_have_no_shift_at_all(monkeypatch):
    found, _ = measured({"base": logits_of(0), "tuned": logits_of(0)}, monkeypatch, 7)
    assert found["kl"] == 0.0
    assert found["top1_agreement"] == 1.0
    assert found["nll_base"] == found["nll_tuned"]


def test_an_entry_that_no_checkpoint_can_produce_adds_nothing(monkeypatch):
    logits = {"base": logits_of(0), "tuned": logits_of(1)}
    entry = next(v for v in range(VOCAB) if v not in tokens())
    for logits_SV in logits.values():
        logits_SV[:, entry] = -torch.inf
    found, scored_S = measured(logits, monkeypatch, 7)
    rows = [
        x.double().log_softmax(-1)[:-1][scored_S].where(torch.arange(VOCAB) != entry, -1e9)
        for x in logits.values()
    ]
    shift = (rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean()
    assert found["kl"] == pytest.approx(float(shift), abs=1e-6)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_never_looks_finite(wrong, monkeypatch):
    logits = {"base": logits_of(0), "tuned": logits_of(1)}
    logits["tuned"][5, 30] = wrong
    found, scored_S = measured(logits, monkeypatch, 7)
    assert scored_S[5]
    assert found["nll_tuned"] == found["kl"] == float("inf")
    assert found["nll_base"] < 100


def test_equal_logits_are_won_by_the_first(monkeypatch):
    flat = torch.zeros(LENGTH, VOCAB)
    for winner, share in ((0, 1.0), (7, 0.0), (49, 0.0)):
        monkeypatch.setattr(f"{__name__}.tokens", lambda winner=winner: torch.full((LENGTH,), winner))
        found, _ = measured({"base": flat, "tuned": flat}, monkeypatch, 7)
        assert found["token_accuracy_base"] == found["exact_match_base"] == share
