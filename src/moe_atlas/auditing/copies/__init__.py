"""Copies of a checkpoint that are never written: a side of the walk transforms each tensor after reading it."""
