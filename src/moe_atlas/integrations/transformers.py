"""A callback for transformers' Trainer that runs a gate at every saved checkpoint.

    from moe_atlas.integrations import CheckpointGate
    from moe_atlas.integrations.transformers import GateCallback
    gate = CheckpointGate("base.ckpt", "probes.yaml", "gates/", run="sft-640", stop_when="intervene")
    trainer = Trainer(..., callbacks=[GateCallback(gate)])

Keep checkpoints until their gates are done: set `save_total_limit` to two or more, or leave it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from moe_atlas.integrations.checkpoint_gate import CheckpointGate


class GateCallback(TrainerCallback):
    """Runs a gate on the main process at every saved checkpoint, and stops all processes together.

    In a distributed training a gate starts when every process has written its part of the checkpoint. The callback
    reads a finished gate at the next checkpoint; a gate with ``wait=True`` is read at its own checkpoint.

    Args:
        gate: the gate, which also decides when to stop.
    """

    def __init__(self, gate: CheckpointGate) -> None:
        self.gate = gate

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Start the gate of the checkpoint that was just saved."""
        stop = False
        if _distributed():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            stop = self.gate(checkpoint, state.global_step)
        if _agreed(stop):
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the running gates, so that no result is lost."""
        if state.is_world_process_zero:
            self.gate.finish()


def _agreed(stop: bool) -> bool:
    """Return the main process's decision on every process: a process that went on alone would wait for ever."""
    if not _distributed():
        return stop
    decision = [stop]
    torch.distributed.broadcast_object_list(decision, src=0)
    return decision[0]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
