"""Several processes that share an audit find what one finds, bit for bit; one that ends takes the others with it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.auditing.processes.digests import finishers
from moe_atlas.auditing.processes.group import Group
from moe_atlas.auditing.run import measure
from moe_atlas.cli.common.place import place as place_of
from moe_atlas.errors import UsageError
from moe_atlas.options import Place
from moe_atlas.receipt.schema import schema, schema_problems
from moe_atlas.text import shown
from scripts.oracle import tiny
from tests.auditing.ranks_worker import keep, measured
from tests.auditing.test_grown_vocabularies import grow
from tests.auditing.test_properties import permute
from tests.auditing.test_verdicts import fuse
from tests.checkpoint.test_quantised import fp8_model
from tests.receipt.test_described import undescribed
from tests.support import pairs, processes

WORKER = str(Path(__file__).with_name("ranks_worker.py"))
TASK = {"name": "sft", "role": "task", "source": "sft.jsonl", "documents": 30}


def moved(name: str) -> bool:
    return "norm" not in name


def tune(base: Path, name: str, scale: float = 3e-2, chosen=moved) -> Path:
    return pairs.variant(base, base.parent / f"{base.name}-{name}", pairs.jitter(scale, chosen), shards=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def probes(root):
    """Base windows of three batches, and task windows of their own length; every second token is measured."""
    folder = root / "probe"
    folder.mkdir()
    rows = [{"id": str(n), "prompt": [n % 40, 3, 4], "completion": [5, n % 7, 9, 11]} for n in range(30)]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domains = [
        {"name": name, "role": "base", "source": f"{name}.jsonl", "documents": 30}
        for name in ("prose", "code")
    ]
    success = {"success": {"metric": "nll", "at_most": 9.0}}
    policy = {key: value for key, value in pairs.POLICY.items() if key != "task"}
    changes = {
        "domains": [*domains, TASK | success],
        "policy": policy,
        "evaluation": {"experts": "active", "token_stride": 2, "quantile": 0.9},
    }
    return pairs.probe(folder, documents=30, length=20, **changes)


@pytest.fixture(scope="module")
def everyone(root):
    """All experts of every token are evaluated."""
    evaluation = {"experts": "all", "token_stride": 1, "quantile": 0.9}
    return pairs.probe(root / "everyone", documents=15, length=16, evaluation=evaluation)


@pytest.fixture(scope="module")
def split(root):
    """One tensor an expert."""
    return tiny.save("qwen3_moe", root / "split", seed=5)


@pytest.fixture(scope="module")
def stacked(root):
    """Experts stacked in one tensor, a dense layer first, groups and a selection bias."""
    return tiny.save("deepseek_v3", root / "stacked", seed=5)


@pytest.fixture(scope="module")
def cases(root, split, stacked, probes, everyone):
    """Audits by name: (base, tuned, probe file, options)."""
    exact, bf16 = {"dtype": "float32", "threads": 1}, {"dtype": "bfloat16", "threads": 1}
    weighted = tiny.save("llama4_text", root / "weighted", seed=2)
    swapped = pairs.variant(tune(split, "t"), root / "swapped", permute([1], router=True))
    plain = tiny.save("deepseek_v3", root / "plain", dtype=torch.bfloat16)
    fp8 = fp8_model(root / "fp8")
    narrow = pairs.variant(
        split, root / "narrow", lambda tensors: {n: t.bfloat16() for n, t in tensors.items()}
    )
    fused = pairs.variant(narrow, root / "narrow-fused", fuse([0, 1]))
    wide = pairs.variant(fused, root / "wide", lambda tensors: {n: t.float() for n, t in tensors.items()})
    frozen = tune(split, "frozen", chosen=lambda name: "layers.1" in name and "self_attn" in name)
    half = tune(split, "half", chosen=lambda name: "experts.6." in name or "lm_head" in name)
    grown = grow(split, "grown")
    found = {
        "split": (split, tune(split, "tuned"), probes, exact | {"tokens": True}),
        "stacked": (stacked, tune(stacked, "tuned"), probes, exact),
        "split, bfloat16": (split, tune(split, "tuned"), probes, bf16),
        "stacked, bfloat16": (stacked, tune(stacked, "tuned"), probes, bf16),
        "against itself": (stacked, stacked, probes, exact),
        "frozen": (split, frozen, probes, exact),
        "one expert moved": (split, half, probes, exact),
        "grown": (split, grown, probes, exact),
        "shrunk": (grown, split, probes, exact),
        "relabelled": (split, swapped, everyone, exact | {"tokens": True}),
        "weighted on the input": (weighted, tune(weighted, "tuned"), everyone, exact),
        "another dtype and layout": (narrow, wide, everyone, {"threads": 1}),
        "two formats": (plain, fp8, everyone, exact),
        "noise floor": (
            stacked,
            tune(stacked, "tuned"),
            everyone,
            exact | {"noise_floor": "order", "chart_maps": 2},
        ),
        "in rounds": (split, tune(split, "tuned"), probes, exact | {"tokens": True, "held_tokens": 600}),
        "baseline": (split, None, probes, exact),
    }
    return {name: (str(a), b and str(b), str(p), options) for name, (a, b, p, options) in found.items()}


FAST = (
    "split",
    "stacked, bfloat16",
    "one expert moved",
    "grown",
    "relabelled",
    "in rounds",
    "another dtype and layout",
)


@pytest.fixture(scope="module")
def alone(root, cases):
    """What one process finds; each case when it is asked for."""
    folder = root / "alone"
    folder.mkdir()

    def found(name: str) -> tuple[dict, bytes]:
        if not (folder / f"{name}.json").exists():
            base, tuned, probe, options = cases[name]
            keep(folder, name, *measured(base, tuned, probe, options))
        return kept(folder, name)

    return found


def kept(folder: Path, name: str) -> tuple[dict, bytes]:
    """An audit's facts but for its times and the bytes it read, and its window data."""
    facts = json.loads((folder / f"{name}.json").read_text())
    del facts["timing"]
    for side in facts["checkpoints"].values():
        del side["bytes_read"]
    return facts, (folder / f"{name}.windows").read_bytes()


def shared(root: Path, cases, size: int) -> Path:
    """What so many processes find together."""
    folder = root / f"shared-{size}-{len(cases)}"
    folder.mkdir()
    (folder / "cases").write_text(json.dumps(cases))
    for process in processes.together([[WORKER, str(folder / "cases"), str(folder)]] * size):
        assert (process.code, said(process)) == (0, [])
    return folder


def assert_the_same(cases, folder: Path, alone) -> None:
    for name in cases:
        facts, windows = kept(folder, name)
        expected, expected_windows = alone(name)
        assert facts == expected, name
        assert windows == expected_windows, name


def test_two_processes_find_what_one_finds(root, cases, alone):
    fast = {name: cases[name] for name in FAST}
    assert_the_same(fast, shared(root, fast, 2), alone)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_however_many_processes_find_what_one_finds(root, cases, alone, size):
    assert_the_same(cases, shared(root, cases, size), alone)


# --- the command -----------------------------------------------------------------------------------------------

STRUCK = """\
import os
import runpy
import signal
import sys
from moe_atlas.auditing import loop
real = loop.close_layer
def struck(audit, reading, *rest):
    if os.environ["RANK"] == "1" and reading.layer == 0:
        {blow}
    real(audit, reading, *rest)
loop.close_layer = struck
runpy.run_module("moe_atlas", run_name="__main__", alter_sys=True)
"""
BLOWS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "a bug": "raise LookupError('of ours')",
    "a shard cut short": "os.truncate(sys.argv[3] + '/model-00002-of-00003.safetensors', 100)",
}


def command(root: Path, folder: Path, tuned: Path, *options: str, probe: str = "everyone") -> list[str]:
    probe, receipt = str(root / probe / "probes.yaml"), str(folder / "receipt.json")
    arguments = ["audit", str(root / "split"), str(tuned), "--probe", probe, "--receipt", receipt]
    return [*arguments, "--dtype", "float32", "--threads", "1", *options]


def struck(root: Path, folder: Path, blow: str, size: int) -> list[list[str]]:
    """Processes of which the second is struck when the first routed layer is done; it reads a copy of its own."""
    tuned = tune(root / "split", "tuned")
    own = shutil.copytree(tuned, folder / "copy")
    script = STRUCK.format(blow=BLOWS[blow])
    found = [tuned if rank != 1 else own for rank in range(size)]
    return [["-c", script, *command(root, folder, path)] for path in found]


def said(process: processes.Ended) -> list[str]:
    """What a process said on standard error, progress and torch's own remarks aside."""
    return [line for line in process.err.splitlines() if not line.startswith(("atlas: re", "[W"))]


def test_a_killed_process_ends_all_with_one_line_and_no_receipt(root, split, everyone, tmp_path):
    with processes.started(struck(root, tmp_path, "killed", 2)) as (leader, other):
        second, begin = processes.ended(other), time.monotonic()
        first, seconds = processes.ended(leader), time.monotonic() - begin
    assert seconds < 30
    assert (first.code, second.code) == (6, -signal.SIGKILL)
    (line,) = said(first)
    assert line.startswith("atlas: E_RANK process 0 of 2: another process of this audit has ended")
    assert first.out == ""
    assert not list(tmp_path.glob("receipt*"))


def test_what_one_process_meets_the_first_one_says(root, split, everyone, tmp_path):
    first, second = processes.together(struck(root, tmp_path, "a shard cut short", 2))
    assert (first.code, second.code) == (5, 5)
    (line,) = said(first)
    assert line.startswith("atlas: E_CHANGED ")
    assert "copy/model-00002-of-00003.safetensors" in line
    assert (second.out, said(second)) == ("", [])
    assert not list(tmp_path.glob("receipt*"))


@pytest.mark.slow
def test_a_bug_in_one_process_shows_there_and_ends_the_others(root, split, everyone, tmp_path):
    first, second, third = processes.together(struck(root, tmp_path, "a bug", 3))
    assert (first.code, second.code, third.code) == (6, 70, 6)
    assert "LookupError: of ours" in second.err
    assert "Traceback" not in first.err + third.err
    assert said(third) == []
    (line,) = said(first)
    assert line.startswith("atlas: E_RANK process 0 of 3: another process")
    assert not list(tmp_path.glob("receipt*"))


@pytest.mark.slow
def test_processes_that_see_other_inputs_are_refused_by_name(root, split, everyone, tmp_path):
    tuned, other = tune(split, "tuned"), tune(split, "other")
    (other / "config.json").write_text((other / "config.json").read_text().replace("1e-06", "2e-06"))
    arguments = [command(root, tmp_path, tuned), command(root, tmp_path, other, "--memory", "3GiB")]
    first, second = processes.together([["-m", "moe_atlas", *own] for own in arguments])
    assert (first.code, second.code) == (2, 2)
    (line,) = said(first)
    assert "E_RANK 2 processes: not as in process 0: the tuned checkpoint (process 1)" in line
    assert said(second) == []


def test_more_processes_than_experts_are_refused(split, everyone):
    with pytest.raises(UsageError, match="E_RANK 9 processes: a layer has 8 experts to share"):
        measure(split, split, everyone, AuditOptions(), of(9))


def test_the_bytes_are_divided(root, split, cases, tmp_path):
    """Nothing is read twice where every expert has tensors of its own, and the receipt says who read what."""
    arguments = command(root, tmp_path, tune(split, "tuned"), "--quiet")
    ends = processes.together([["-m", "moe_atlas", *arguments]] * 2)
    assert [process.code for process in ends] == [ends[0].code] * 2
    assert [process.out + "".join(said(process)) for process in ends] == ["", ""]
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert schema_problems(receipt) == []
    assert undescribed(receipt, [schema()]) == set()
    for name, side in receipt["checkpoints"].items():
        shares = [part["bytes_read"][name] for part in receipt["timing"]["processes"]]
        assert side["bytes_read"] == side["bytes"] == sum(shares)
        assert max(shares) <= 0.55 * side["bytes"]


@pytest.mark.parametrize("taken", ["receipt.json", "receipt.windows.safetensors", "report.html"])
def test_a_place_that_is_taken_ends_several_before_the_work(root, split, everyone, tmp_path, taken):
    (tmp_path / taken).write_text("kept")
    report = f"html={tmp_path / 'report.html'}"
    unable = "from moe_atlas.auditing import run\nrun.prepare = None\n"
    script = f"{unable}import runpy\nrunpy.run_module('moe_atlas', run_name='__main__', alter_sys=True)"
    arguments = command(root, tmp_path, tune(split, "tuned"), "--format", report)
    both = [["-c", script, *arguments], ["-m", "moe_atlas", *arguments]]  # the leader alone must not begin
    with processes.started(both) as (leader, _):
        first = processes.ended(leader)
    assert first.code == 2
    (line,) = said(first)
    assert line.startswith(f"atlas: E_EXISTS {shown(str(tmp_path / taken))}: is there already")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "kept"


def test_resuming_is_not_for_several(root, split, everyone, tmp_path):
    place = Place(0, 2, 0)
    with pytest.raises(UsageError, match="E_RANK --resume"):
        audit(
            split,
            split,
            everyone,
            receipt=tmp_path / "r.json",
            resume=True,
            options=AuditOptions(place=place),
        )


@pytest.mark.slow
def test_torchrun_starts_it(root, split, tmp_path):
    pairs.probe(root / "same", documents=15, policy=pairs.SAME)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    run = subprocess.run(
        [
            *torchrun,
            str(processes.free_port()),
            "-m",
            "moe_atlas",
            *command(root, tmp_path, split, "--quiet", probe="same"),
        ],
        env=processes.environment(0, 1, 0),
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "receipt.json").read_text())["verdict"] == "pass"


# --- who does what ---------------------------------------------------------------------------------------------


def test_only_the_module_that_torchrun_starts_looks_for_others(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place_of() is None
    main = type(sys)("__main__")
    main.__package__ = "moe_atlas"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert place_of() == Place(0, 2, 0)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place_of() is None
    for size in ("0", "two"):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(UsageError, match="E_RANK"):
            place_of()


def of(size: int) -> Group:
    group = Group()
    group.size = size
    return group


@pytest.mark.parametrize(("count", "size"), [(64, 2), (64, 4), (7, 3), (8, 8), (128, 5)])
def test_shares_are_consecutive_and_even(count, size):
    group = of(size)
    shares = [group.share(count, rank) for rank in range(size)]
    assert [expert for share in shares for expert in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_hashes_are_finished_by_who_has_seen_most_and_evenly():
    tensors = {f"t{n}": SimpleNamespace(nbytes=100) for n in range(6)}
    seen = [{"t0": 100, "t1": 100, "t4": 50, "t5": 50}, {"t2": 100, "t3": 100}]
    owners = finishers(tensors, seen)
    assert [owners[f"t{n}"] for n in range(4)] == [0, 0, 1, 1]
    assert owners["t4"] == 0
    left = [
        sum(100 - seen[rank].get(n, 0) for n, owner in owners.items() if owner == rank) for rank in range(2)
    ]
    assert max(left) <= 100
