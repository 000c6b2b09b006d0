from __future__ import annotations

import errno
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from probe_files import prose, write_rows

from moe_atlas.errors import Exit, InputRefused, ResourceExhausted, UsageError
from moe_atlas.probes import Lock, load_registered, register
from moe_atlas.probes.lock import differences, lock_path, parse_lock, seal

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def lock_refusal(path: Path) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        load_registered(path)
    assert caught.value.code == "E_PROBE_LOCK"
    assert caught.value.exit_code == Exit.REFUSED
    return caught.value


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_round_trip(probe_file: Path) -> None:
    lock = register(probe_file, now=NOON)
    probes = load_registered(probe_file)
    assert lock.path == probe_file.with_name("probes.lock.json")
    assert probes.lock == lock
    assert lock.digest == hashlib.sha256(lock.path.read_bytes()).hexdigest()
    assert lock.registered_at == "2026-01-02T12:00:00+00:00"
    assert lock.predecessor is None
    assert [w.domain for w in probes.base_windows] == [0] * 5 + [2] * 5
    assert probes.domain(probes.windows[-1]).name == "sft"
    assert [p.name for p in probe_file.parent.iterdir() if ".tmp" in p.name] == []


def test_what_the_lock_says(probe_file: Path) -> None:
    lock = register(probe_file)
    body = json.loads(lock.path.read_text())
    assert body["schema"] == "atlas/probes-lock/v1"
    assert body["stage"] == "chart-preserving"
    assert body["tokenizer"] == {"kind": "bytes", "sha256": None}
    assert body["probes"]["policy"]["rewrite"]["coordinate"] == 0.02
    assert [d["name"] for d in body["domains"]] == ["prose", "canary", "code", "sft"]
    source = (probe_file.parent / "prose.jsonl").read_bytes()
    assert body["domains"][0]["source_sha256"] == hashlib.sha256(source).hexdigest()
    window = next(w for w in load_registered(probe_file).windows if w.domain == 3)
    plain = b"".join(int(t).to_bytes(8, "little") for t in window.tokens) + bytes(
        int(flag) for flag in window.scored
    )
    assert body["domains"][3]["windows"][0] == {
        "document": window.document_id,
        "tokens": 7,
        "sha256": hashlib.sha256(plain).hexdigest(),
    }


def test_no_lock_names_the_command(probe_file: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_registered(probe_file)
    assert caught.value.code == "E_PROBE_UNREGISTERED"
    assert caught.value.exit_code == Exit.USAGE
    assert f"atlas register {probe_file}" in caught.value.next_step


def test_comments_and_layout_are_free(probe_file: Path) -> None:
    register(probe_file)
    edit(probe_file, "name: gate", "# a remark\nname:   'gate'")
    edit(probe_file, "tau: 0.25", "tau: 2.5e-1")
    load_registered(probe_file)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("boundary: 0.08", "boundary: 0.8", "policy.rewrite.boundary: registered 0.08, now 0.8"),
        ("boundary: 0.08", "boundary: null", "policy.rewrite.boundary: registered 0.08, now null"),
        (", overlap_drop: 0.02", "", "policy.rewrite.overlap_drop: registered 0.02, now null"),
        ("mu: [1, 1,", "mu: [1, 0,", "policy.rewrite.refinement.mu[1]: registered 1.0, now 0.0"),
        ("stage: chart-preserving", "stage: knowledge-expansive", "policy.stage"),
        ("confidence: 0.95", "confidence: 0.9", "policy.confidence"),
        ("document_share: 0.05", "document_share: 0.5", "policy.damage.document_share"),
        ("[router]", "[]", "policy.weights.must_not_change: registered 1 entries, now 0 entries"),
        ("max_nll_increase: 0.5", "max_nll_increase: 5", "domains['canary'].max_nll_increase"),
        ("at_most: 1.9", "at_most: 2.9", "domains['sft'].success.at_most: registered 1.9, now 2.9"),
        ("[2, 8-20]", "[2]", "protected_layers: registered 2 entries, now 1 entries"),
        ("[2, 8-20]", "all", "protected_layers"),
        ("quantile: 0.9", "quantile: 0.5", "evaluation.quantile"),
        ("token_stride: 1", "token_stride: 2", "evaluation.token_stride"),
        ("seed: 7", "seed: 8", "windows.seed: registered 7, now 8"),
        ("tokens: 32", "tokens: 31", "windows.tokens"),
        ("documents: 5}", "documents: 4}", "domains['prose'].documents: registered 5, now 4"),
        ("name: gate", "name: other", "name: registered"),
    ],
)
def test_any_change_of_the_file_is_named(probe_file: Path, old: str, new: str, named: str) -> None:
    register(probe_file)
    edit(probe_file, old, new)
    error = lock_refusal(probe_file)
    assert named in error.problem
    assert f"atlas register --force {probe_file}" in error.next_step


def test_a_changed_document_is_named(probe_file: Path) -> None:
    register(probe_file)
    chosen = load_registered(probe_file).windows[2].document_id
    source = probe_file.parent / "prose.jsonl"
    lines = source.read_text().splitlines()
    lines[int(chosen) - 1] = json.dumps({"text": prose(999, 90)})
    source.write_text("\n".join(lines) + "\n")
    error = lock_refusal(probe_file)
    assert f"domains['prose'].windows[2, document '{chosen}'].sha256" in error.problem
    assert "domains['prose'].source_sha256" in error.problem


def test_an_appended_document_is_noticed(probe_file: Path) -> None:
    register(probe_file)
    with (probe_file.parent / "canary.jsonl").open("a") as file:
        file.write(json.dumps({"text": prose(999, 90)}) + "\n")
    assert (
        "domains['canary'].windows: registered 8 entries, now 9 entries" in lock_refusal(probe_file).problem
    )


def test_a_changed_mask_is_noticed(probe_file: Path) -> None:
    """The same tokens with another boundary between prompt and completion."""
    register(probe_file)
    rows: list[dict[str, object]] = [
        {"prompt": f"say {n}{n}", "completion": "!", "id": f"t{n}"} for n in range(8)
    ]
    write_rows(probe_file.parent / "sft.jsonl", rows)
    error = lock_refusal(probe_file)
    assert "domains['sft'].windows[0, document 't" in error.problem


def test_a_changed_tokenizer_is_noticed(probe_file: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: n for n, letter in enumerate("abcdefgh say0123456789!")}
    inner = Tokenizer(models.WordLevel(letters, unk_token="!"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.save(str(probe_file.parent / "tokenizer.json"))
    edit(probe_file, "tokenizer: bytes", "tokenizer: tokenizer.json")
    register(probe_file)
    load_registered(probe_file)
    with (probe_file.parent / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert "tokenizer.sha256" in lock_refusal(probe_file).problem


def test_registering_again_changes_nothing(probe_file: Path) -> None:
    first = register(probe_file, now=NOON)
    before = first.path.read_bytes()
    assert register(probe_file) == first
    assert register(probe_file, force=True) == first
    assert first.path.read_bytes() == before


def test_a_differing_lock_is_only_replaced_on_the_record(probe_file: Path) -> None:
    first = register(probe_file, now=NOON)
    before = first.path.read_bytes()
    edit(probe_file, "boundary: 0.08", "boundary: 0.8")
    with pytest.raises(UsageError) as caught:
        register(probe_file)
    assert caught.value.code == "E_PROBE_REGISTERED"
    assert "policy.rewrite.boundary: registered 0.08, now 0.8" in caught.value.problem
    assert "--force" in caught.value.next_step
    assert first.path.read_bytes() == before
    second = register(probe_file, force=True)
    assert second.predecessor == {
        "sha256": first.digest,
        "registered_at": first.registered_at,
        "policy_sha256": first.policy_sha256,
    }
    assert second.policy_sha256 != first.policy_sha256
    load_registered(probe_file)


def test_the_policy_digest_follows_the_policy_alone(probe_file: Path) -> None:
    first = register(probe_file)
    edit(probe_file, "seed: 7", "seed: 8")
    second = register(probe_file, force=True)
    assert second.digest != first.digest
    assert second.policy_sha256 == first.policy_sha256
    edit(probe_file, "quantile: 0.9", "quantile: 0.8")
    assert register(probe_file, force=True).policy_sha256 != first.policy_sha256


@pytest.mark.parametrize("masks", [1, pytest.param(255, marks=pytest.mark.slow)])
def test_every_single_byte_change_of_the_lock_is_noticed(probe_file: Path, masks: int) -> None:
    """One other value of every byte here, all 255 in the slow run."""
    raw = register(probe_file).path.read_bytes()
    parse_lock(raw, "lock")
    generator = np.random.default_rng(0)
    changes = [(at, mask) for at in range(len(raw)) for mask in 1 + generator.permutation(255)[:masks]]
    print(f"{len(changes)} changed bytes of a lock of {len(raw)}")
    for position, mask in changes:
        damaged = bytearray(raw)
        damaged[position] ^= int(mask)
        with pytest.raises(InputRefused) as caught:
            parse_lock(bytes(damaged), "lock")
        assert caught.value.code == "E_PROBE_LOCK"


@pytest.mark.parametrize("cut", [0, 1, -1, -2, 100])
def test_a_cut_or_padded_lock_is_noticed(probe_file: Path, cut: int) -> None:
    raw = register(probe_file).path.read_bytes()
    for damaged in (raw[:cut], raw + b"\n", raw + b" ", b" " + raw, raw + raw):
        probe_file.with_name("probes.lock.json").write_bytes(damaged)
        lock_refusal(probe_file)


@pytest.mark.parametrize(
    "missing", ["predecessor", "registered_at", "probes", "domains", "tokenizer", "name"]
)
def test_a_resealed_lock_must_still_be_a_lock(probe_file: Path, missing: str) -> None:
    lock = register(probe_file)
    body = {key: value for key, value in lock.body.items() if key != missing}
    lock.path.write_bytes(seal(body))
    lock_refusal(probe_file)
    lock.path.write_bytes(seal(lock.body | {"extra": 1}))
    lock_refusal(probe_file)


@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {"a": 1}])
def test_a_resealed_lock_with_other_types_is_a_mismatch(probe_file: Path, value: object) -> None:
    lock = register(probe_file)
    for key in ("probes", "domains", "tokenizer"):
        lock.path.write_bytes(seal(lock.body | {key: value}))
        lock_refusal(probe_file)


@pytest.mark.parametrize("raw", [b"", b"[]", b"3", b"{}", b'{"schema": "x"}', b"\xff", b"[" * 100_000])
def test_what_is_no_lock_is_refused(probe_file: Path, raw: bytes) -> None:
    register(probe_file).path.write_bytes(raw)
    lock_refusal(probe_file)


def test_a_damaged_lock_is_replaced_only_with_force(probe_file: Path) -> None:
    lock = register(probe_file)
    damaged = lock.path.read_bytes()[:-10]
    lock.path.write_bytes(damaged)
    with pytest.raises(InputRefused):
        register(probe_file)
    again = register(probe_file, force=True)
    assert again.predecessor == {
        "sha256": hashlib.sha256(damaged).hexdigest(),
        "registered_at": None,
        "policy_sha256": None,
    }


def test_a_full_disk_leaves_the_old_lock(probe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = register(probe_file)
    before = first.path.read_bytes()
    edit(probe_file, "boundary: 0.08", "boundary: 0.8")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResourceExhausted) as caught:
        register(probe_file, force=True)
    monkeypatch.undo()
    assert caught.value.exit_code == Exit.EXHAUSTED
    assert first.path.read_bytes() == before
    assert sorted(p.name for p in probe_file.parent.iterdir() if p.name.startswith(".")) == []


def test_partial_writes_are_completed(probe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    lock = register(probe_file)
    monkeypatch.undo()
    assert load_registered(probe_file).lock == lock


def test_lock_path() -> None:
    assert lock_path(Path("a/probes.yaml")) == Path("a/probes.lock.json")
    assert lock_path(Path("probes.sft.yml")) == Path("probes.sft.lock.json")
    assert lock_path(Path("probes")) == Path("probes.lock.json")


def test_differences_tell_types_apart() -> None:
    assert differences({"a": 1}, {"a": True}) == ["a: registered 1, now true"]
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a[1]: registered 2, now 3"]
    assert differences({"a": {"b": None}}, {"a": {}}) == []
    assert differences({"a": 1}, {"a": 1}) == []


def test_a_lock_is_a_value(probe_file: Path) -> None:
    assert isinstance(register(probe_file), Lock)
