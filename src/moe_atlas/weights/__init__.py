"""Comparison of the tensors of two checkpoints without routing: the weights ledger and expert identity."""
