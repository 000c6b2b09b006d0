"""The evidence of single tokens is what transformers computes, and a receipt holds it to its window data."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_atlas.api import AuditOptions, audit, baseline
from moe_atlas.auditing import run as running
from moe_atlas.auditing.layer.measurements import LayerMeasurements
from moe_atlas.auditing.plan import plan
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.geometry.drift import replaced_members
from moe_atlas.probes.registration import load_registered
from moe_atlas.receipt.canonical import encode_receipt, receipt_digest
from moe_atlas.receipt.files import token_path
from moe_atlas.receipt.token_file import TOKEN_FILE
from moe_atlas.receipt.verify import verify
from moe_atlas.receipt.write import check_writable
from moe_atlas.system import limits
from moe_atlas.token_arrays import NLL_BASE, NLL_INCREASE, move_names
from scripts.oracle import tiny
from tests.auditing.test_properties import permute
from tests.auditing.test_resume import Killed, kill_after
from tests.support import pairs

WITH = AuditOptions(dtype="float32", tokens=True, threads=1)
TASK = {"name": "sft", "role": "task", "source": "sft.jsonl", "documents": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("token-data")


@pytest.fixture(scope="module")
def base(root):
    return tiny.save("qwen3_moe", root / "base", seed=5)


@pytest.fixture(scope="module")
def tuned(root, base):
    return pairs.variant(base, root / "tuned", pairs.jitter(0.2, lambda name: "norm" not in name))


@pytest.fixture(scope="module")
def probes(root):
    """Base windows, and task windows of another length of which the prompt is not scored."""
    folder = root / "probe"
    folder.mkdir()
    rows = [{"id": str(n), "prompt": [n % 40, 3, 4], "completion": [5, n % 7, 9, 11]} for n in range(10)]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domains = [
        {"name": name, "role": "base", "source": f"{name}.jsonl", "documents": 12}
        for name in ("prose", "code")
    ]
    success = {"success": {"metric": "nll", "at_most": 9.0}}
    policy = {key: value for key, value in pairs.SAME.items() if key != "task"}
    return pairs.probe(folder, documents=12, length=16, domains=[*domains, TASK | success], policy=policy)


@pytest.fixture(scope="module")
def kept(root, base, tuned, probes):
    """A receipt with token data; tests that change anything copy its folder."""
    (root / "kept").mkdir()
    audit(base, tuned, probes, receipt=root / "kept/receipt.json", options=WITH)
    return root / "kept/receipt.json"


def audited(base: Path, tuned: Path, probes: Path, folder: Path, **changes) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    options = AuditOptions(**{"dtype": "float32", "tokens": True, "threads": 1, **changes})
    return audit(base, tuned, probes, receipt=folder / "receipt.json", options=options, force=True).tokens()


def losses(oracle: tiny.Oracle, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of every prediction of one window, [S-1]."""
    return torch.nn.functional.cross_entropy(oracle.logits[0, :-1].double(), tokens[0, 1:], reduction="none")


def test_losses_and_routed_sets_are_those_of_transformers(base, tuned, probes, kept):
    models = [tiny.load_reference(folder) for folder in (base, tuned)]
    windows = load_registered(probes).windows
    found: dict[str, list] = {NLL_BASE: [], NLL_INCREASE: []}
    sets: dict[int, list] = {}
    for window in windows:
        tokens = torch.from_numpy(window.tokens)[None]
        oracles = [tiny.oracle(model, tokens) for model in models]
        nll = [losses(oracle, tokens)[torch.from_numpy(window.scored)] for oracle in oracles]
        found[NLL_BASE].append(nll[0])
        found[NLL_INCREASE].append(nll[1] - nll[0])
        for layer in oracles[0].sets:
            sets.setdefault(layer, []).append([set_of(oracle.sets[layer]) for oracle in oracles])
    arrays = TOKEN_FILE.decode(token_path(kept).read_bytes(), "tokens")
    for name, parts in found.items():
        # float16 rounds to 2**-11; the float32 replay adds a few 1e-6.
        np.testing.assert_allclose(
            arrays[name].astype(float), torch.cat(parts).numpy(), rtol=2**-11, atol=1e-5
        )
    for layer, parts in sets.items():
        moves = [one for pair in parts for one in zip(*pair, strict=True)]
        names = move_names(layer)
        assert arrays[names.moved].tolist() == [len(before - after) for before, after in moves]
        ends = np.cumsum(arrays[names.moved])
        lost, gained = (np.split(arrays[name], ends[:-1]) for name in (names.lost, names.gained))
        assert [set(part.tolist()) for part in lost] == [before - after for before, after in moves]
        assert [set(part.tolist()) for part in gained] == [after - before for before, after in moves]
    assert sum(int(arrays[move_names(layer).moved].sum()) for layer in sets) > 100


def set_of(ids_TK: torch.Tensor) -> list[set[int]]:
    return [set(row) for row in ids_TK.reshape(-1, ids_TK.shape[-1]).tolist()]


def test_lost_and_gained_experts_are_paired_by_rank_and_duplicates_count_twice():
    before = torch.tensor([[5, 2, 7], [1, 1, 2], [0, 1, 2]])
    after = torch.tensor([[9, 5, 4], [1, 3, 2], [2, 0, 1]])
    moved, lost, gained = replaced_members(before, after)
    assert moved.tolist() == [2, 1, 0]
    assert list(zip(lost.tolist(), gained.tolist(), strict=True)) == [(2, 9), (7, 4), (1, 3)]


@pytest.mark.parametrize("change", [None, permute([1], router=True)], ids=["itself", "relabelled"])
def test_a_pair_of_equal_values_changes_at_no_token(base, probes, root, change):
    other = base if change is None else pairs.variant(base, root / "other", change)
    for skips in (True, False):
        arrays = audited(base, other, probes, root / "equal", skips=skips)
        assert not arrays[NLL_INCREASE].any()
        assert arrays[NLL_BASE].any()
        assert not any(arrays[move_names(layer).moved].any() for layer in (0, 1))
        assert not any(len(arrays[move_names(layer).lost]) for layer in (0, 1))


def test_a_loss_that_is_not_finite_is_kept_as_infinite(base, probes, root):
    def broken(tensors):
        tensors["model.layers.1.mlp.experts.0.down_proj.weight"][:] = torch.nan

    tuned = pairs.variant(base, root / "broken", broken)
    arrays = audited(base, tuned, probes, root / "infinite")
    assert np.isposinf(arrays[NLL_INCREASE]).any()
    assert not np.isnan(arrays[NLL_INCREASE]).any()
    assert np.isfinite(arrays[NLL_BASE]).all()
    assert verify(root / "infinite/receipt.json").mismatches == []


def test_without_the_option_the_receipt_is_the_same_but_for_the_file(base, tuned, probes, root, kept):
    folder = root / "plain"
    assert audited(base, tuned, probes, folder, tokens=False) is None
    assert not token_path(folder / "receipt.json").exists()
    plain, whole = (json.loads(path.read_bytes()) for path in (folder / "receipt.json", kept))
    assert {key for key in whole if whole[key] != plain[key]} <= {"timing", "evidence"}
    assert set(whole["evidence"]) - set(plain["evidence"]) == {"tokens"}
    name = "receipt.windows.safetensors"
    assert (folder / name).read_bytes() == kept.with_name(name).read_bytes()


def test_a_receipt_that_replaces_another_takes_its_token_data_away(base, tuned, probes, kept, tmp_path):
    shutil.copytree(kept.parent, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UsageError, match="E_EXISTS"):
        check_writable(tmp_path / "receipt.json")
    audited(base, tuned, probes, tmp_path, tokens=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["receipt.json", "receipt.windows.safetensors"]


def test_token_data_that_stand_alone_are_not_written_over(kept, tmp_path):
    shutil.copy(token_path(kept), tmp_path)
    with pytest.raises(UsageError, match=r"E_EXISTS .*tokens"):
        check_writable(tmp_path / "receipt.json")


def test_killed_and_resumed_the_token_data_are_the_same(base, tuned, probes, kept, tmp_path, monkeypatch):
    path = tmp_path / "receipt.json"
    with monkeypatch.context() as patched:
        kill_after(patched, 1)
        with pytest.raises(Killed):
            audit(base, tuned, probes, receipt=path, resume=True, options=WITH)
    with pytest.raises(UsageError, match=r"E_RESUME .*the options differ"):
        audit(
            base, tuned, probes, receipt=path, resume=True, options=AuditOptions(dtype="float32", threads=1)
        )
    audit(base, tuned, probes, receipt=path, resume=True, options=WITH)
    assert token_path(path).read_bytes() == token_path(kept).read_bytes()


def test_in_several_passes_the_token_data_are_the_same(base, tuned, probes, kept, tmp_path, monkeypatch):
    partition = running.partition
    monkeypatch.setattr(running, "partition", lambda *found: partition(*found, limit=50))
    monkeypatch.setattr(running.memory, "held_tokens", lambda *_: 100)
    audited(base, tuned, probes, tmp_path)
    found = TOKEN_FILE.decode(token_path(tmp_path / "receipt.json").read_bytes(), "found")
    for name, array in TOKEN_FILE.decode(token_path(kept).read_bytes(), "kept").items():
        assert np.allclose(found[name].astype(float), array.astype(float), atol=1e-4), name


def test_audits_beside_the_pair_keep_no_tokens(base, tuned, probes, kept, tmp_path, monkeypatch):
    """The noise floor and the yardstick are audits of the base against a copy of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    add, seen = LayerMeasurements.add_moves, []
    monkeypatch.setattr(
        LayerMeasurements, "add_moves", lambda *found: (seen.append(found[0].layer), add(*found))
    )
    found = audited(base, tuned, probes, tmp_path / "all", noise_floor="order", yardstick=True)
    assert sorted(set(seen)) == [0, 1]
    assert len(seen) == 2 * len({len(window.tokens) for window in load_registered(probes).windows})
    theirs = TOKEN_FILE.decode(token_path(kept).read_bytes(), "kept")
    assert {name: array.tobytes() for name, array in found.items()} == {
        n: a.tobytes() for n, a in theirs.items()
    }


def test_verification_checks_the_token_data_or_says_that_they_are_absent(kept, tmp_path):
    assert verify(kept).checked[-1] == "token data"
    shutil.copytree(kept.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "receipt.json"
    token_path(path).unlink()
    report = verify(path)
    assert report.mismatches == []
    assert "token data" not in report.checked
    assert report.absent == ["token data receipt.tokens.safetensors: no number or verdict follows from them"]


def test_token_data_that_were_changed_are_found(kept, tmp_path):
    shutil.copytree(kept.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "receipt.json"
    raw = bytearray(token_path(path).read_bytes())
    raw[-1] ^= 1
    token_path(path).write_bytes(raw)
    (found,) = verify(path).mismatches
    assert found.path == "evidence.tokens"
    assert "is not the token data that the receipt names" in found.problem


def swapped(arrays, name):
    arrays[name] = arrays[name][::-1].copy()


FORGERIES = {
    "the change of loss": lambda arrays: swapped(arrays, NLL_INCREASE),
    "the base's loss": lambda arrays: swapped(arrays, NLL_BASE),
    "where a set changed": lambda arrays: swapped(arrays, "layers.0.moved"),
    "too many replaced members": lambda arrays: arrays.update(
        {"layers.0.moved": arrays["layers.0.moved"] * 0 + 9}
    ),
    "an expert that is not there": lambda arrays: arrays.update(
        {"layers.1.lost": arrays["layers.1.lost"] | 128}
    ),
    "a layer missing": lambda arrays: [arrays.pop(f"layers.1.{key}") for key in ("moved", "lost", "gained")],
    "an array missing": lambda arrays: arrays.pop("layers.1.moved"),
    "a layer too many": lambda arrays: arrays.update({"layers.7.moved": arrays["layers.1.moved"]}),
    "another dtype": lambda arrays: arrays.update(
        {"layers.1.moved": arrays["layers.1.moved"].astype(np.uint16)}
    ),
    "a number that is none": lambda arrays: arrays.update({NLL_BASE: arrays[NLL_BASE] * np.float16("nan")}),
    "a token too few": lambda arrays: arrays.update({NLL_BASE: arrays[NLL_BASE][1:]}),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_token_data_that_do_not_fit_the_window_data_are_found(kept, tmp_path, forgery):
    """The digests of the forged files are right: whoever forges one file can seal the other."""
    shutil.copytree(kept.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "receipt.json"
    arrays = dict(TOKEN_FILE.decode(token_path(path).read_bytes(), "tokens"))
    forgery(arrays)
    token_path(path).write_bytes(TOKEN_FILE.encode(arrays))
    receipt = json.loads(path.read_bytes())
    receipt["evidence"]["tokens"]["sha256"] = hashlib.sha256(token_path(path).read_bytes()).hexdigest()
    receipt["evidence"]["receipt_sha256"] = receipt_digest(receipt)
    path.write_bytes(encode_receipt(receipt))
    assert verify(path).mismatches


def test_a_baseline_has_no_token_that_changes(base, probes, tmp_path):
    with pytest.raises(UsageError, match=r"E_TOKENS tokens: a baseline has one checkpoint"):
        baseline(base, probes, receipt=tmp_path / "receipt.json", options=WITH)
    assert list(tmp_path.iterdir()) == []


def test_more_token_data_than_a_verifier_reads_are_refused_before_the_work(
    base, tuned, probes, tmp_path, monkeypatch
):
    monkeypatch.setattr(limits, "MAX_TOKEN_BYTES", 1000)
    with pytest.raises(InputRefused, match=r"E_PROBE_SIZE .*leave --tokens out"):
        audit(base, tuned, probes, receipt=tmp_path / "receipt.json", options=WITH)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_counts_the_token_data(base, tuned, probes, kept):
    without, found = (
        plan(base, tuned, probes, AuditOptions(dtype="float32", tokens=tokens)) for tokens in (False, True)
    )
    assert "token_data" not in without
    stored = sum(array.nbytes for array in TOKEN_FILE.decode(token_path(kept).read_bytes(), "kept").values())
    assert found["token_data"]["least"] < stored < found["token_data"]["most"]
    more = found["memory"]["minimum"] - without["memory"]["minimum"]
    assert more == running.WRITTEN * found["token_data"]["most"]
