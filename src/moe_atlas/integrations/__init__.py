"""Gates inside a training: `CheckpointGate` for any loop, `GateCallback` in `.transformers` for its Trainer."""

from moe_atlas.integrations.checkpoint_gate import CheckpointGate, GateResult

__all__ = ["CheckpointGate", "GateResult"]
