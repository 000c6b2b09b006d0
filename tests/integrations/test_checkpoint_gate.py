"""Gates inside a training: they run beside it, stop it by policy, and never pass silently."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from moe_atlas.errors import UsageError
from moe_atlas.integrations import CheckpointGate, GateResult, checkpoint_gate
from moe_atlas.system.parent_process import end_with_parent
from scripts.oracle import tiny
from tests.support import pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "light", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.variant(base, root / "hard", pairs.jitter(0.5, lambda name: "norm" not in name))
    pairs.probe(root / "probe")
    return root


@pytest.fixture
def gate(place, tmp_path):
    def make(**options):
        return CheckpointGate(place / "base", place / "probe/probes.yaml", tmp_path / "gates", **options)

    return make


def test_a_failing_gate_stops_and_says_why(gate, place, caplog):
    made = gate(wait=True)
    assert made(place / "light", 10) is False
    assert made(place / "hard", 20) is True
    assert [(one.step, one.verdict, one.exit_code) for one in made.results] == [
        (10, "pass", 0),
        (20, "fail", 1),
    ]
    assert "drift" in made.results[1].message
    assert made.results[1].receipt.exists()
    assert "gate at step 20: stop training (fail)" in caplog.text


def test_without_waiting_the_training_goes_on_and_reads_the_gate_later(gate, place):
    made = gate()
    assert made(place / "hard", 10) is False
    assert made(place / "light", 20) is False or made.results
    assert made.finish() is True
    assert [one.step for one in made.results] == [10, 20]


def test_never_only_warns(gate, place):
    made = gate(stop_when="never", wait=True)
    assert made(place / "hard", 10) is False
    assert made.results[0].verdict == "fail"


def test_intervene_follows_the_escalation_rule_of_the_run(gate, place, tmp_path):
    made = gate(stop_when="intervene", run="sft", runs=tmp_path / "runs", wait=True)
    stops = [made(place / "hard", step) for step in (10, 20, 30, 40)]
    assert stops == [False, False, False, True]  # the fourth bad gate of an episode ends the waiting


def test_a_gate_that_cannot_be_carried_out_is_an_error_and_no_verdict(gate, place, caplog):
    made = gate(wait=True)
    with caplog.at_level(logging.ERROR):
        assert made(place / "nowhere", 10) is False
    assert made.results[0].verdict is None
    assert made.results[0].exit_code not in (0, 1, 3)
    assert "was not carried out: E_" in caplog.text


def test_a_gate_that_cannot_start_leaves_the_training_alone(gate, place, tmp_path, caplog):
    (tmp_path / "gates").write_text("a file where the folder should be")
    made = gate()
    assert made(place / "hard", 10) is False
    assert [(one.exit_code, one.verdict) for one in made.results] == [(None, None)]
    assert "was not carried out: [Errno" in caplog.text


def test_a_ledger_that_cannot_be_read_is_an_error_and_does_not_stop(gate, place, tmp_path, caplog):
    made = gate(stop_when="intervene", run="sft", runs=tmp_path / "runs", wait=True)
    made._judge(GateResult(10, place / "hard", tmp_path / "r.json", 1, "fail", "", 1.0))
    assert "history cannot be read: E_" in caplog.text
    assert made.poll() is False


def test_an_old_receipt_is_not_taken_for_this_gates(gate, place):
    made = gate(wait=True)
    made(place / "hard", 10)
    made(place / "hard", 10)
    assert made.results[1].verdict is None
    assert "is there already" in made.results[1].message


def test_a_policy_that_cannot_be_is_refused(gate):
    with pytest.raises(UsageError, match="E_GATE"):
        gate(stop_when="sometimes")
    with pytest.raises(UsageError, match="no run is named"):
        gate(stop_when="intervene")


def test_a_task_that_is_not_reached_yet_stops_no_training(place, tmp_path):
    domains = yaml.safe_load((place / "probe/probes.yaml").read_text())["domains"]
    task = {"name": "sft", "role": "task", "source": "sft.jsonl", "documents": 40}
    task["success"] = {"metric": "nll", "at_most": 0.01}
    policy = {key: value for key, value in pairs.POLICY.items() if key != "task"}
    (tmp_path / "probe").mkdir()
    rows = [json.loads(line) for line in (place / "probe/code.jsonl").read_text().splitlines()]
    turned = [{"id": f"sft-{n}", "tokens": row["tokens"][::-1]} for n, row in enumerate(rows)]
    (tmp_path / "probe/sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned))
    probes = pairs.probe(tmp_path / "probe", domains=[*domains, task], policy=policy)
    made = CheckpointGate(place / "base", probes, tmp_path / "gates", wait=True)
    assert made(place / "light", 10) is False
    assert made(place / "hard", 20) is True
    assert [(one.verdict, one.structure) for one in made.results] == [("fail", "pass"), ("fail", "fail")]


HANGING = """
import time
from pathlib import Path
from moe_atlas import cli
from moe_atlas.auditing import loop
def hang(*arguments):
    Path("amid").touch()
    time.sleep(300)
loop.record_weights = hang
cli.main()
"""
# A training whose audit hangs amid its layers, beside a worker that inherited whatever the training holds open.
TRAINING = """
import multiprocessing, os, sys, time
from moe_atlas.integrations import CheckpointGate

class Gate(CheckpointGate):
    def _command(self, *arguments):
        instead = {{"-m": "-c", "moe_atlas": {hanging!r}}}
        return [instead.get(word, word) for word in super()._command(*arguments)]

gate = Gate(*sys.argv[1:4])
gate(sys.argv[4], 10)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,), daemon=True)
worker.start()
print(gate._running.process.pid, worker.pid, flush=True)
while not os.path.exists("amid"):
    time.sleep(0.05)
{end}
"""


def runs(process: int) -> bool:
    """Whether a process is there and is no zombie that nobody has buried yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["time.sleep(300)", "os._exit(1)", "raise SystemExit(1)"])
def test_an_audit_ends_with_its_training(place, tmp_path, end):
    """Killed, gone without a word, or ended by an error, while a forked worker lives on."""
    words = [place / "base", place / "probe/probes.yaml", tmp_path / "gates", place / "light"]
    command = [sys.executable, "-c", TRAINING.format(hanging=HANGING, end=end), *map(str, words)]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    audit, worker = map(int, training.stdout.readline().split())
    try:
        assert until((tmp_path / "amid").exists, 120)
        assert runs(audit)
        training.kill()
        training.wait()
        assert until(lambda: not runs(audit), 10)
        assert [path.name for path in (tmp_path / "gates").iterdir()] == ["gate-10.log"]
        said = (tmp_path / "gates/gate-10.log").read_text().splitlines()
        assert said[-1] == "atlas: stopped before a result was acknowledged"
    finally:
        for process in (audit, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_an_audit_whose_training_is_gone_before_it_looks_ends_at_once():
    gone = os.environ | {"ATLAS_PARENT": "1" if os.getppid() != 1 else "2"}
    waits = "import time; from moe_atlas import cli; cli.run = lambda words: time.sleep(300); cli.main()"
    found = subprocess.run(
        [sys.executable, "-c", waits], env=gone, capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stderr) == (143, "atlas: stopped before a result was acknowledged\n")


def test_a_process_that_names_no_parent_stays_with_none(monkeypatch):
    for named in ("", "-1", "one"):
        monkeypatch.setenv("ATLAS_PARENT", named)
        end_with_parent()
        assert "ATLAS_PARENT" not in os.environ
    assert not [thread for thread in threading.enumerate() if thread.name == "parent"]


def test_importing_it_loads_neither_torch_nor_transformers():
    code = "import sys, moe_atlas.integrations as i; print({'torch', 'transformers'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_the_trainer_stops_at_the_gate_of_its_checkpoint(gate, place, tmp_path):
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from moe_atlas.integrations.transformers import GateCallback

    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    rows = [
        {"input_ids": torch.randint(0, 48, (12,)), "labels": torch.randint(0, 48, (12,))} for _ in range(16)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=6, save_steps=2, per_device_train_batch_size=2,
        learning_rate=0.3, report_to=[], disable_tqdm=True, use_cpu=True, save_only_model=True,
    )  # fmt: skip
    made = gate(wait=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[GateCallback(made)])
    trainer.train()
    assert made.results[-1].verdict == "fail", made.results
    assert trainer.state.global_step == made.results[-1].step < 6


RANK = """
import json, os, sys, time
from pathlib import Path
import torch, torch.distributed
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from moe_atlas.integrations import CheckpointGate
from moe_atlas.integrations.transformers import GateCallback

place, here = map(Path, sys.argv[1:])
rank = int(os.environ["RANK"])

class SlowWriter(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if rank == 1:
            time.sleep(2)
            (here / "part-of-rank-1").touch()

class Gate(CheckpointGate):
    def __call__(self, checkpoint, step):
        assert (here / "part-of-rank-1").exists(), "started before the checkpoint was whole"
        return super().__call__(checkpoint, step)

torch.manual_seed(0)
rows = [{"input_ids": torch.randint(0, 48, (12,)), "labels": torch.randint(0, 48, (12,))} for _ in range(32)]
arguments = TrainingArguments(
    output_dir=str(here / "out"), max_steps=6, save_steps=2, per_device_train_batch_size=2, learning_rate=0.3,
    report_to=[], disable_tqdm=True, use_cpu=True, save_only_model=True, ddp_backend="gloo",
)
gate = Gate(place / "base", place / "probe/probes.yaml", here / "gates", wait=True)
model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[SlowWriter(), GateCallback(gate)])
trainer.train()
said = {"world": torch.distributed.get_world_size(), "step": trainer.state.global_step,
        "verdicts": [one.verdict for one in gate.results]}
(here / f"rank-{rank}.json").write_text(json.dumps(said))
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # an interpreter that ends with gloo's threads alive may abort
"""


def test_two_processes_take_one_gate_and_stop_together(place, tmp_path):
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(place), str(tmp_path)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=300)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == {"world": 2, "step": 2, "verdicts": ["fail"]}
    assert found[1] == {"world": 2, "step": 2, "verdicts": []}
    assert [log.name for log in (tmp_path / "gates").glob("*.log")] == ["gate-2.log"]


def test_the_log_of_a_running_gate_has_progress_before_its_summary(gate, place, tmp_path):
    made = gate(wait=True)
    made(place / "light", 10)
    lines = (tmp_path / "gates/gate-10.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("atlas: ")][0] == "atlas: replaying layers: 2 steps"
    assert lines.index("{") > 0
    assert made.results[0].verdict == "pass"


def test_finish_says_what_it_waits_for(gate, place, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint_gate, "IMPATIENT", 0.05)
    monkeypatch.setattr(checkpoint_gate, "SAY_EVERY", 0.05)
    made = gate()
    made(place / "light", 10)
    made(place / "light", 20)
    made.finish()
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert said[0].startswith("waiting for the gate at step 10: ")
    assert "; 1 more in the queue; log: " in said[0]
    assert str(tmp_path / "gates/gate-10.log")[-40:] in said[0]
    assert any("step 20" in line and "queue" not in line for line in said)
    assert any("atlas" not in line and "layers: " in line for line in said)


def test_a_gate_that_takes_too_long_is_killed_and_says_so(gate, place, caplog):
    made = gate()
    made(place / "light", 10)
    assert made.finish(timeout=0.05) is False
    assert [(one.verdict, one.exit_code) for one in made.results] == [(None, -signal.SIGKILL)]
    assert "gate at step 10: killed after " in caplog.text
    assert "was not carried out" in caplog.text


def test_the_last_line_of_a_log_is_found_without_reading_it_all(tmp_path):
    log = tmp_path / "gate.log"
    assert checkpoint_gate._last_line(log) == ""
    log.write_bytes(b"atlas: first\n" + b"x" * 9000 + b"\natlas: layers: 3/6\n\n")
    assert checkpoint_gate._last_line(log) == "layers: 3/6"
