"""Adapters of PEFT as the tuned checkpoint: the base's tensors, changed while they are read.

`open_adapter` opens a base and an adapter's folder as one source of tensors. No merged copy is ever written.
"""
