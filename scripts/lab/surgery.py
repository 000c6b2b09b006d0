"""Damage done to a checkpoint's tensors: what converters, resumes and merges are known to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.lab.families import Family
from scripts.training.checkpoint import BIAS, Tensors, stored

EXPERT = re.compile(r"^(model\.layers\.(\d+)\.mlp\.experts)\.(\d+)\.(\w+)\.weight$")
ROUTER = re.compile(r"^model\.layers\.(\d+)\.mlp\.gate\.(weight|e_score_correction_bias)$")
BLOCK = 16  # side of an fp8 block and length of an int4 group; released models use 128
FP8_MAX = 448.0


def changed(start: Tensors, change: Callable[[str, Tensor], Tensor]) -> Tensors:
    """A copy with every tensor passed through `change`."""
    return {name: stored(name, change(name, tensor.float())) for name, tensor in start.items()}


def is_matrix(name: str) -> bool:
    """Whether low precision would store this tensor: matrices but routers, norms, embedding and head."""
    return "_proj" in name and name.endswith("weight")


def fp8_blocks(start: Tensors) -> Tensors:
    """Matrices through float8 e4m3 with a scale a block, and back to bfloat16."""

    def rounded(name: str, matrix: Tensor) -> Tensor:
        if not is_matrix(name):
            return matrix
        out = matrix.clone()
        for row in range(0, matrix.shape[0], BLOCK):
            for column in range(0, matrix.shape[1], BLOCK):
                block = matrix[row : row + BLOCK, column : column + BLOCK]
                scale = block.abs().max().clamp(min=1e-12) / FP8_MAX
                back = (block / scale).to(torch.float8_e4m3fn).float() * scale
                out[row : row + BLOCK, column : column + BLOCK] = back
        return out

    return changed(start, rounded)


def int_groups(start: Tensors, bits: int) -> Tensors:
    """Matrices through symmetric integers of so many bits with a scale a group of a row, and back."""
    most = 2 ** (bits - 1) - 1

    def rounded(name: str, matrix: Tensor) -> Tensor:
        if not is_matrix(name):
            return matrix
        groups = matrix.view(matrix.shape[0], -1, 8)
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
        kept: Tensor = ((groups / scale).round().clamp(-most - 1, most) * scale).view_as(matrix)
        return kept

    return changed(start, rounded)


def experts_from(start: Tensors, layer: int, source: dict[int, int]) -> Tensors:
    """Expert e of a layer gets the bytes of expert source[e]; routers stay."""
    out = dict(start)
    for name in start:
        found = EXPERT.match(name)
        if found and int(found[2]) == layer and int(found[3]) in source:
            out[name] = start[f"{found[1]}.{source[int(found[3])]}.{found[4]}.weight"].clone()
    return out


def relabelled(family: Family, start: Tensors, seed: int = 0) -> Tensors:
    """Experts, router rows and biases permuted alike in every layer, whole groups and within groups."""
    generator = torch.Generator().manual_seed(seed)
    size = family.experts // family.groups
    out = dict(start)
    for layer in family.layers:
        groups = torch.randperm(family.groups, generator=generator)
        order = torch.cat([g * size + torch.randperm(size, generator=generator) for g in groups])
        out |= experts_from(start, layer, {new: int(old) for new, old in enumerate(order)})
        for name in start:
            found = ROUTER.match(name)
            if found and int(found[1]) == layer:
                out[name] = start[name][order].clone()
    return out


def without_bias(start: Tensors) -> Tensors:
    """The selection bias lost on resume: zeros."""
    return {name: torch.zeros_like(t) if name.endswith(BIAS) else t for name, t in start.items()}


def unit_gains(start: Tensors) -> Tensors:
    """The gains of the norms in front of the routed blocks lost on resume: ones."""
    return {
        name: torch.ones_like(t) if "post_attention_layernorm" in name else t for name, t in start.items()
    }


def zeroed_expert(start: Tensors, layer: int, expert: int) -> Tensors:
    """An expert that a converter dropped."""
    prefix = f"model.layers.{layer}.mlp.experts.{expert}."
    return {name: torch.zeros_like(t) if name.startswith(prefix) else t for name, t in start.items()}


def collapsed_router(start: Tensors, factor: float = 3.0, favoured: int = 6) -> Tensors:
    """In every layer a few router rows gain the layer's common direction, and win nearly everywhere."""

    def favour(name: str, tensor: Tensor) -> Tensor:
        found = ROUTER.match(name)
        if not found or found[2] != "weight":
            return tensor
        out = tensor.clone()
        out[:favoured] = factor * (tensor[:favoured] + tensor.mean(0, keepdim=True))
        return out

    return changed(start, favour)


def noisy_router(start: Tensors, scale: float, seed: int = 0) -> Tensors:
    """Router rows with noise relative to their own size."""
    generator = torch.Generator().manual_seed(seed)

    def noise(name: str, tensor: Tensor) -> Tensor:
        found = ROUTER.match(name)
        if not found or found[2] != "weight":
            return tensor
        return tensor + scale * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return changed(start, noise)


def dropped_delta(start: Tensors, tuned: Tensors, kept: Callable[[str], bool]) -> Tensors:
    """A merge that wrote only part of a tune: tensors that are not `kept` stay the base's."""
    return {name: tuned[name] if kept(name) else start[name] for name in start}


def scrambled_delta(start: Tensors, tuned: Tensors, kept: Callable[[str], bool], seed: int = 0) -> Tensors:
    """A tune whose deltas keep their norm but lie in the wrong places (||delta|| correct, values scrambled)."""
    generator = torch.Generator().manual_seed(seed)
    out = dict(tuned)
    for name in start:
        if kept(name):
            delta = (tuned[name].float() - start[name].float()).flatten()
            mixed = delta[torch.randperm(len(delta), generator=generator)].view(start[name].shape)
            out[name] = stored(name, start[name].float() + mixed)
    return out


def low_rank_delta(start: Tensors, tuned: Tensors, rank: int, scale: float = 1.0) -> Tensors:
    """An adapter merged into the base: every matrix's delta cut to a rank, times the adapter's scale."""
    out = dict(start)
    for name in start:
        if is_matrix(name):
            delta = tuned[name].float() - start[name].float()
            u, s, v = torch.linalg.svd(delta, full_matrices=False)
            low = (u[:, :rank] * s[:rank]) @ v[:rank]
            out[name] = stored(name, start[name].float() + scale * low)
    return out
