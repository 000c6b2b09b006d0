"""Statements: one subject that stock tools check, no verdict softened, nothing attested that is not so."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as elliptic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from moe_atlas.attestation.statement import predicate, sha256sums
from moe_atlas.checkpoint.digest import config_sha256, digest_checkpoint, digest_with_files
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.cli import run
from moe_atlas.errors import InputRefused
from moe_atlas.receipt.write import write_receipt
from moe_atlas.views.receipt import ReceiptView
from tests.receipt import synthetic

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/statement.schema.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A tuned checkpoint in two shards and a passing receipt about it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
    from forge import write_sharded

    shards = {
        "model-1.safetensors": {"a": b"\1" * 40, "b": b""},
        "model-2.safetensors": {"c": bytes(range(256))},
    }
    write_sharded(tmp_path / "tuned", shards)
    receipt(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def receipt(folder: Path, scale: float = 1.0, **changes) -> dict:
    facts, windows = synthetic.audit(scale=scale)
    facts["checkpoints"]["tuned"] |= identity(folder / "tuned")
    return write_receipt(facts | changes, windows, folder / "receipt.json", force=True)


def identity(checkpoint: Path) -> dict[str, str]:
    opened = open_checkpoint(checkpoint)
    return {"digest": digest_checkpoint(opened).sha256, "config_sha256": config_sha256(opened)}


def attest(*extra: str) -> int:
    return run(["attest", "receipt.json", "--checkpoint", "tuned", *extra])


def statement(folder: Path) -> dict:
    found = json.loads((folder / "statement.json").read_bytes())
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def sha256sum(folder: Path) -> subprocess.CompletedProcess:
    command = ["sha256sum", "--check", "--strict", "--quiet", "../SHA256SUMS"]
    return subprocess.run(command, cwd=folder / "tuned", capture_output=True, text=True, check=False)


def test_one_subject_which_stock_tools_check(place):
    assert attest() == 0
    found = statement(place)
    manifest = (place / "SHA256SUMS").read_bytes()
    assert found["subject"] == [
        {"name": "SHA256SUMS", "digest": {"sha256": hashlib.sha256(manifest).hexdigest()}}
    ]
    assert [line.split("  ")[1] for line in manifest.decode().splitlines()] == [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]
    assert sha256sum(place).returncode == 0
    base = json.loads((place / "receipt.json").read_text())["checkpoints"]["base"]["digest"]
    assert found["predicate"]["resolvedDependencies"][0]["digest"] == {"moeAtlasTensors": base}
    assert base not in json.dumps(found["subject"])
    evidence = {entry["name"]: entry["digest"]["sha256"] for entry in found["predicate"]["evidence"]}
    assert evidence == {
        name: hashlib.sha256((place / name).read_bytes()).hexdigest()
        for name in ("receipt.json", "receipt.windows.safetensors")
    }
    assert found["predicate"]["configuration"][0]["digest"]["sha256"] == synthetic.SHA


def test_equal_inputs_give_equal_bytes(place):
    assert attest() == 0
    first = (place / "statement.json").read_bytes()
    assert attest("--force") == 0
    assert (place / "statement.json").read_bytes() == first


@pytest.mark.parametrize("damage", ["swap", "rename", "flip", "config"])
def test_what_a_subject_per_shard_would_miss(place, damage):
    assert attest() == 0
    one, two = place / "tuned/model-1.safetensors", place / "tuned/model-2.safetensors"
    if damage == "swap":
        first = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(first)
    elif damage == "rename":
        one.rename(one.with_name("model-3.safetensors"))
    elif damage == "flip":
        raw = two.read_bytes()
        two.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        (place / "tuned/config.json").write_text('{"other": 1}')
    assert sha256sum(place).returncode == 1


@pytest.mark.parametrize(
    ("scale", "hole", "code", "result", "verdict"),
    [
        (1.0, False, 0, "PASSED", "pass"),
        (60.0, False, 1, "FAILED", "fail"),
        (1.0, True, 3, "FAILED", "inconclusive"),
    ],
)
def test_a_verdict_is_never_softened(place, scale, hole, code, result, verdict):
    facts, windows = synthetic.audit(scale=scale)
    facts["checkpoints"]["tuned"] |= identity(place / "tuned")
    if hole:
        windows["layers.2.pair.content_drift"][:] = float("nan")
    write_receipt(facts, windows, place / "receipt.json", force=True)
    assert attest() == code
    found = statement(place)["predicate"]
    assert (found["result"], found["verdict"]) == (result, verdict)
    assert "WARNED" not in json.dumps(found)
    if hole:
        assert found["undeterminedTests"] == ["protected_atlas_rewrite", "knowledge_expansive"]
        assert found["failedTests"] == []


def test_a_statement_says_that_a_pass_judged_no_atlas(place, capsys):
    facts, windows = synthetic.audit()
    facts["checkpoints"]["tuned"] |= identity(place / "tuned")
    policy = facts["probe"]["policy"]
    policy |= {"stage": "damage-only", "rewrite": dict.fromkeys(policy["rewrite"])}
    write_receipt(facts, windows, place / "receipt.json", force=True)
    assert attest() == 0
    assert "verdict pass (the atlas was measured, not judged)" in capsys.readouterr().out
    found = statement(place)["predicate"]
    assert (found["result"], found["stage"], found["qualified"]) == ("PASSED", "damage-only", ["damage-only"])


def test_the_schema_knows_no_softened_verdict(place):
    assert attest() == 0
    found = statement(place)
    for key, value in (
        ("result", "WARNED"),
        ("verdict", "inconclusive"),
        ("failedTests", ["base_domain_damage"]),
    ):
        changed = found | {"predicate": found["predicate"] | {key: value}}
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(changed)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(found | {"subject": found["subject"] * 2})


def test_a_central_policy_is_part_of_the_configuration(place):
    facts, _ = synthetic.audit()
    facts["probe"]["lock"]["policy_from"] = {"name": "release", "sha256": "ab" * 32}
    receipt(place, probe=facts["probe"])
    assert attest() == 0
    assert statement(place)["predicate"]["configuration"][1] == {
        "name": "release",
        "digest": {"sha256": "ab" * 32},
    }


def refused(capsys, code: str) -> bool:
    err = capsys.readouterr().err
    return err.startswith(f"atlas: {code} ") and err.count("\n") == 1


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("tuned", "key.pem"))


BEFORE = ["receipt.json", "receipt.windows.safetensors"]


def test_another_checkpoint_is_not_attested(place, capsys):
    data = place / "tuned/model-2.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    assert attest() == 5
    assert refused(capsys, "E_DIGEST")
    assert left(place) == BEFORE


def test_the_same_weights_under_another_configuration_are_not_attested(place, capsys):
    """k stands in config.json: a manifest over the edited file must not carry the verdict of the audited one."""
    config = place / "tuned/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_experts_per_tok": 1}))
    assert attest() == 5
    assert "E_DIGEST tuned: is not the audited checkpoint: expected configuration" in capsys.readouterr().err
    assert not (place / "statement.json").exists()
    assert run(["verify", "receipt.json", "--checkpoint", "tuned"]) == 5
    assert "checkpoints.tuned.config_sha256: expected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (["-o", "SHA256SUMS"], "E_OVER_INPUT SHA256SUMS"),
        (["-o", "x/../SHA256SUMS"], "E_OVER_INPUT"),
        (["-o", "receipt.json"], "E_OVER_INPUT receipt.json"),
        (["-o", "receipt.windows.safetensors"], "E_OVER_INPUT"),
        (["-o", "tuned/config.json"], "E_OVER_INPUT"),
        (["-o", "tuned/statement.json"], "E_OVER_INPUT"),
        (["-o", "link.json"], "E_OVER_INPUT link.json"),
    ],
)
def test_a_statement_replaces_neither_its_manifest_nor_an_input(place, capsys, extra, code):
    (place / "x").mkdir()
    (place / "link.json").symlink_to("receipt.json")
    files = [file for file in place.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    assert attest(*extra, "--force") == 2
    assert f"atlas: {code}" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


def test_a_receipt_that_does_not_verify_is_not_attested(place, capsys):
    path = place / "receipt.json"
    path.write_bytes(path.read_bytes().replace(b'"seconds": 1.0', b'"seconds": 1.5'))
    assert attest() == 5
    assert refused(capsys, "E_RECEIPT")
    assert left(place) == BEFORE


def test_a_baseline_is_not_attested(place, capsys):
    write_receipt(*synthetic.baseline(), place / "receipt.json", force=True)
    assert attest() == 2
    assert refused(capsys, "E_KIND")


@pytest.mark.parametrize("taken", ["statement.json", "SHA256SUMS"])
def test_existing_files_are_kept(place, capsys, taken):
    (place / taken).write_text("mine")
    assert attest() == 2
    assert refused(capsys, "E_EXISTS")
    assert (place / taken).read_text() == "mine"
    assert attest("--force") == 0


def test_a_full_disk_leaves_nothing(place, capsys, monkeypatch):
    from moe_atlas.cli.receipts import attest as module

    real, calls = module.write_atomic, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", full)
    assert attest() == 6
    assert refused(capsys, "E_WRITE")
    assert left(place) == BEFORE


def test_names_that_a_manifest_cannot_hold():
    for name in ("a\\b", "a\nb", "a\u202eb"):
        with pytest.raises(InputRefused, match="E_NAME"):
            sha256sums({name: "0" * 64})


def test_one_reading_digests_tensors_and_files(place):
    checkpoint = open_checkpoint(place / "tuned")
    digest, files = digest_with_files(checkpoint)
    assert digest == digest_checkpoint(checkpoint)
    assert files == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (place / "tuned").iterdir()
    }


# --- signing ---------------------------------------------------------------------------------------------------


def write_key(folder: Path, private, encryption=None) -> str:
    raw = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    (folder / "key.pem").write_bytes(raw)
    return str(folder / "key.pem")


@pytest.mark.parametrize("make", [Ed25519PrivateKey.generate, lambda: elliptic(SECP256R1())])
def test_a_signed_statement_verifies_with_securesystemslib(place, make):
    private = make()
    assert attest("--sign", write_key(place, private)) == 0
    raw = json.loads((place / "statement.dsse.json").read_bytes())
    assert base64.b64decode(raw["payload"]) == (place / "statement.json").read_bytes()
    assert raw["payloadType"] == "application/vnd.in-toto+json"
    public = SSlibKey.from_crypto(private.public_key())
    envelope = Envelope.from_dict(raw)
    assert set(envelope.verify([public], 1)) == {public.keyid}
    envelope.payload += b" "
    with pytest.raises(Exception, match="[Ss]ignature"):
        envelope.verify([public], 1)


def test_what_is_no_key_is_refused(place, capsys):
    (place / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n")
    assert attest("--sign", "key.pem") == 4
    assert refused(capsys, "E_KEY")
    locked = write_key(place, Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret"))
    assert attest("--sign", locked) == 4
    assert refused(capsys, "E_KEY")
    assert attest("--sign", "nowhere.pem") == 4
    assert left(place) == BEFORE


def test_without_the_extra_a_key_is_usage_and_everything_else_works(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "securesystemslib.dsse", None)
    assert attest("--sign", write_key(place, Ed25519PrivateKey.generate())) == 2
    err = capsys.readouterr().err
    assert err.startswith("atlas: E_SIGN --sign")
    assert "moe-atlas[sign]" in err
    assert left(place) == BEFORE
    assert attest() == 0


def test_attesting_never_imports_torch_nor_a_signing_library_without_a_key(place):
    program = (
        "import sys\nfrom moe_atlas.cli import run\n"
        "assert run(['attest', 'receipt.json', '--checkpoint', 'tuned']) == 0\n"
        "sys.exit(bool({'torch', 'securesystemslib', 'cryptography'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_predicate_follows_the_receipt(place):
    made = json.loads((place / "receipt.json").read_text())
    made["predicates"]["base_domain_damage"]["passed"] = False
    made["verdict"] = "fail"
    found = predicate(ReceiptView(made), place / "receipt.json")
    assert (found["result"], found["failedTests"]) == ("FAILED", ["base_domain_damage"])
    assert len(found["passedTests"]) == 2
