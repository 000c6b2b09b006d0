"""The audit: replay two checkpoints in lock-step, and collect facts and window arrays."""
