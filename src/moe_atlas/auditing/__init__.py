"""The audit itself: two checkpoints replayed in lock-step, and the facts and window arrays that come out."""
