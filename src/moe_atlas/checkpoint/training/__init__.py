"""Checkpoints that a distributed training writes, read as they are: tensors cut into pieces over many files.

`moe_atlas.checkpoint.training.opening` chooses the reader of a folder. Nothing here imports torch.
"""
