"""Names that a file, a folder or an option can carry, on their way to a terminal and to a pipeline's log: inert."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from moe_atlas.cli import run
from moe_atlas.ledger import Ledger
from moe_atlas.text import quoted, shown
from scripts.oracle import tiny
from tests.ledger.runs import made_facts
from tests.receipt import synthetic
from tests.support import pairs

PAYLOADS = {
    "ansi": "\x1b[31m\x1b]0;owned\x07x",
    "bidi": "a\u202eb\u2066c\u200d",
    "lines": "x\r\n::error::owned\n##[error]owned",
    "command": "::add-mask::owned",
    "padded command": "word " * 12 + "::stop-commands::owned",
    "old command": "a ##[add-mask]owned",
    "markup": "[bold red]x[/] <script>alert(1)</script> ](http://evil.example) |`rm`| @all",
    "surrogate": "x\udc80y",
}
# What a terminal obeys, what reorders text, and what GitHub Actions takes as a command.
LIVE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]|^\s*::|##\[", re.M
)


def inert(text: str) -> bool:
    return LIVE.search(text) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("inert")
    tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(root / "base", root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.probe(root / "probe", documents=12)
    return root


@pytest.fixture(params=PAYLOADS)
def payload(request):
    return PAYLOADS[request.param]


def usable_as_a_name(payload: str) -> str:
    """The payload as a file name: no slash, and what the file system takes."""
    return (
        payload.replace("/", "_").encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")[:100]
    )


def said(capsys, *arguments: object) -> tuple[int, str]:
    code = run([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_the_detector_sees_every_payload(payload):
    live = payload if payload != PAYLOADS["markup"] else "\x1b"
    assert not inert(live.replace("word ", "")) or "\udc80" in payload
    assert inert(shown(payload, 1000))
    for width in range(1, 12):  # however a table breaks the line
        text = shown(payload, 1000)
        assert inert("\n".join(text[n : n + width] for n in range(0, len(text), width)))


def test_checkpoint_paths_and_config(place, tmp_path, payload, capsys):
    folder = tmp_path / usable_as_a_name(payload)
    for command in ("inspect", "baseline"):
        code, text = said(
            capsys, command, folder, *(("--probe", place / "probe/probes.yaml") * (command == "baseline"))
        )
        assert code == 4
        assert inert(text)
    shutil.copytree(place / "base", folder)
    assert inert(said(capsys, "inspect", folder)[1])
    config = json.loads((folder / "config.json").read_text())
    for change in ({"model_type": payload}, {payload: 1}, {"hidden_act": payload}):
        (folder / "config.json").write_text(json.dumps(config | change))
        code, text = said(capsys, "inspect", folder)
        assert code in (0, 4)
        assert inert(text)


def test_tensor_and_shard_names(place, tmp_path, payload, capsys):
    folder = tmp_path / "checkpoint"
    shutil.copytree(place / "base", folder)
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[payload] = header.pop(sorted(header)[1])
    forged = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(forged).to_bytes(8, "little") + forged + raw[8 + length :])
    code, text = said(capsys, "inspect", folder)
    assert code == 4
    assert inert(text)
    index = {"weight_map": {"a": payload, payload: "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    code, text = said(capsys, "inspect", folder)
    assert code == 4
    assert inert(text)


def test_probe_files(place, tmp_path, payload, capsys):
    path = shutil.copytree(place / "probe", tmp_path / usable_as_a_name(payload)) / "probes.yaml"
    config = yaml.safe_load(path.read_text())
    printable = payload if payload.isprintable() and payload == payload.strip() else None
    for change in ({"name": payload}, {payload: 1}, {"tokenizer": payload}, {"domains": [payload]}):
        path.write_text(json.dumps(config | change))
        code, text = said(capsys, "register", path)
        assert code in (0, 2, 4)
        assert inert(text)
    config["name"] = config["domains"][0]["name"] = printable or "x"
    path.write_text(json.dumps(config))
    code, text = said(capsys, "register", path, "--force")
    assert code == 0
    assert inert(text)
    receipt = path.with_name("receipt.json")
    code, text = said(capsys, "audit", place / "base", place / "light", "--probe", path, "--receipt", receipt)
    assert code == 3
    assert inert(text)
    for command in ("verify", "report"):
        code, text = said(capsys, command, receipt)
        assert code == (3 if command == "verify" else 0)
        assert inert(text)
        changed = receipt.read_text().replace(
            '"schema": "atlas', f'{json.dumps(payload)}: 1, "schema": "atlas'
        )
        forged = receipt.with_name("forged.json")
        forged.write_text(changed)
        code, text = said(capsys, command, forged)
        assert code == 5
        assert inert(text)


def test_runs_and_reasons(tmp_path, payload, capsys):
    from moe_atlas.ledger.recording import record_receipt
    from moe_atlas.receipt.write import write_receipt

    ledger = Ledger("sft", tmp_path / usable_as_a_name(payload) / "runs")
    facts = made_facts("baseline")
    facts["parent"] = {"ledger": ledger.head().describe()}
    write_receipt(facts, synthetic.windows(facts), tmp_path / "b.json")
    reason = payload.encode("utf-8", "replace").decode()
    record_receipt(ledger, tmp_path / "b.json", reason=reason)
    runs = ("--runs", ledger.folder.parent)
    for command in ("history", "gate"):
        code, text = said(capsys, command, "sft", *runs)
        assert code == (0 if command == "history" else 3)
        assert inert(text)
        assert inert(said(capsys, command, payload, *runs)[1])
    code, text = said(capsys, "history", "sft", *runs, "--json")
    assert text.isascii()
    assert json.loads(text)["entries"][0]["body"]["reason"] == reason
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"seq":0', b'"seq":1'))
    code, text = said(capsys, "gate", "sft", *runs)
    assert code == 5
    assert inert(text)


def test_options(place, payload, capsys):
    audit = ["audit", place / "base", place / "light", "--probe", place / "probe/probes.yaml"]
    for extra in (
        ["--dtype", payload],
        ["--memory", payload],
        [f"--{payload}"],
        ["--run", payload],
        [payload],
    ):
        code, text = said(capsys, *audit, *extra)
        assert code == 2
        assert inert(text)
    assert inert(said(capsys, payload)[1])


def test_there_is_one_escape(payload):
    """The packages below the command line word their own messages; the command line escapes whole lines again."""
    from moe_atlas.checkpoint.headers.refuse import shown as in_checkpoints

    for escape in (in_checkpoints, quoted):
        assert inert(shown(escape(payload, 1000), 2000))
        assert "\n" not in escape(payload, 1000)


def test_paths_of_this_project_are_not_needed_to_escape() -> None:
    assert shown(str(Path("/a/b c/é/模型.json"))) == "/a/b c/é/模型.json"
