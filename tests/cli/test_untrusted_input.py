"""A whole audit on hostile or moving inputs: what is read, what is refused, and that every refusal has a test."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_atlas.auditing import embedding_and_head
from moe_atlas.cli import run
from scripts.oracle import tiny
from tests.support import pairs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("untrusted")
    tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(
        root / "base", root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name), shards=2
    )
    pairs.probe(root / "probe")
    return root


@pytest.fixture
def audit(place, tmp_path, capsys):
    for name in ("base", "light"):
        shutil.copytree(place / name, tmp_path / name)

    def call():
        arguments = ["audit", tmp_path / "base", tmp_path / "light", "--probe", place / "probe/probes.yaml"]
        arguments += ["--receipt", tmp_path / "receipt.json", "--quiet"]
        return run([str(argument) for argument in arguments]), capsys.readouterr()

    return call


def shard(folder: Path) -> Path:
    return sorted((folder / "light").glob("*.safetensors"))[-1]


def truncate(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size - 50)


def flip(folder: Path) -> None:
    with shard(folder).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def rewind(folder: Path) -> None:
    before = shard(folder).stat()
    flip(folder)
    os.utime(shard(folder), ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(folder: Path) -> None:
    shutil.copy(shard(folder), folder / "copy")
    os.replace(folder / "copy", shard(folder))


def remove(folder: Path) -> None:
    shard(folder).unlink()


def pipe(folder: Path) -> None:
    path = shard(folder)
    path.unlink()
    os.mkfifo(path)


def configure(folder: Path) -> None:
    (folder / "light/config.json").write_text("{}")


@pytest.mark.parametrize("moment", ["start", "end"])
@pytest.mark.parametrize("change", [truncate, flip, rewind, replace, remove, pipe, configure])
def test_a_file_that_changes_during_the_run_ends_in_5(audit, tmp_path, monkeypatch, change, moment):
    name = "embed" if moment == "start" else "outputs"
    real = getattr(embedding_and_head, name)

    def moving(*arguments):
        real(*arguments)
        change(tmp_path)

    monkeypatch.setattr(embedding_and_head, name, moving)
    code, said = audit()
    assert (code, said.out) == (5, "")
    assert re.fullmatch(r"atlas: E_CHANGED \S*light\S* .*\n", said.err)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "copy") == ["base", "light"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(place, tmp_path, capsys):
    arguments = [
        "audit",
        place / "base",
        place / "light",
        "--probe",
        place / "probe/probes.yaml",
        "--device",
        "cuda",
    ]
    assert run([str(argument) for argument in [*arguments, "--receipt", tmp_path / "r.json"]]) == 2
    assert capsys.readouterr().err.startswith("atlas: E_DEVICE --device cuda: ")


def zero(path: Path, begin: int) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(
            begin
        )  # what follows becomes a hole, as in a download that reserved its space and stalled
        file.truncate(size)


def data_begin(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_a_sparse_shard_of_zeros_never_passes_unremarked(audit, tmp_path):
    zero(shard(tmp_path), data_begin(shard(tmp_path)))
    assert audit()[0] == 1
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["weights"]["classes"]["routed_expert"]["all_zero_tensors"]["tuned"] > 0
    assert "all-zero-tensors" in [warning["code"] for warning in receipt["warnings"]]


def test_a_shard_cut_to_its_header_and_a_shard_without_one(audit, tmp_path):
    whole = shard(tmp_path).read_bytes()
    for length, code in ((data_begin(shard(tmp_path)), "E_COVER"), (len(whole), "E_HDR_")):
        content = whole[:length] if code == "E_COVER" else bytes(length)
        shard(tmp_path).write_bytes(content)
        found, said = audit()
        assert found == 4
        assert said.err.startswith(f"atlas: {code}")
        assert not (tmp_path / "receipt.json").exists()


WATCHED = """\
import json, os, sys
import moe_atlas.auditing.run
from moe_atlas.api import audit
inside, seen = os.path.realpath(sys.argv[1]), []
def hook(event, arguments):
    if event.startswith("ctypes.dl") and (arguments == (None,) or arguments[1] == "malloc_trim"):
        return  # freed memory goes back to the system
    if event.split(".")[0] in ("socket", "subprocess", "pickle", "urllib", "ctypes", "shutil", "ftplib", "http"):
        seen.append([event, repr(arguments)[:200]])
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "exec", "compile", "marshal.loads"):
        seen.append([event, repr(arguments)[:200]])
    elif event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        if not path.startswith((inside, sys.prefix, sys.base_prefix, sys.argv[2], "/proc/", "/sys/", "/dev/")):
            seen.append([event, path])
os.chdir(inside)
def run(receipt):
    return audit("base", "light", "probe/probes.yaml", receipt=receipt).exit_code
run("warm.json")  # what Python imports late is imported now
sys.addaudithook(hook)
code = run("receipt.json")
print(json.dumps([code, seen]))
"""


def test_nothing_is_executed_fetched_or_read_elsewhere(place, tmp_path):
    """Under an audit hook: the checkpoint carries code, a chat template and links, as hubs let it."""
    for name in ("base", "light", "probe"):
        shutil.copytree(place / name, tmp_path / name)
    for name in ("base", "light"):
        canary = f"open({str(tmp_path.parent / 'canary')!r}, 'w')"
        (tmp_path / name / "modeling_qwen3_moe.py").write_text(canary)
        (tmp_path / name / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
        (tmp_path / name / "chat_template.jinja").write_text("{{ ''.__class__ }}")
        (tmp_path / name / "elsewhere.safetensors.lock").symlink_to("/etc/passwd")
        config = json.loads((tmp_path / name / "config.json").read_text())
        config |= {
            "auto_map": {"AutoModelForCausalLM": "modeling_qwen3_moe.Model"},
            "_name_or_path": "https://x.y/z",
        }
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", WATCHED, str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, seen = json.loads(done.stdout)
    assert (code, seen) == (0, [])
    assert not (tmp_path.parent / "canary").exists()


def test_every_code_that_can_be_raised_is_named_by_a_test():
    pattern = re.compile(r"\bE_[A-Z]+(?:_[A-Z]+)*\b")
    raised = {
        code
        for file in (ROOT / "src").rglob("*.py")
        for code in re.findall(r'"(E_[A-Z_]+)"', file.read_text())
    }
    tested = {code for file in (ROOT / "tests").rglob("*.py") for code in pattern.findall(file.read_text())}
    assert len(raised) > 70
    assert sorted(raised - tested) == []
