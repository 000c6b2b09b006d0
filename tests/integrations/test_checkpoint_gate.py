"""Gates inside a training: they run beside it, stop it by policy, and never pass silently."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from moe_atlas.errors import UsageError
from moe_atlas.integrations import CheckpointGate
from tests import pairs, tiny


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
