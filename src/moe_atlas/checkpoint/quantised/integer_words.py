"""Integers of 2, 4 or 8 bits in 32-bit words, input by output: GPTQ and AWQ; and MLX's words, output by input.

Sources: `dequantize_weight` of GPTQModel's torch kernel, `dequantize_gemm` of AutoAWQ, `dequantize` of MLX.

Legend: R rows (outputs), C columns (inputs), G groups of columns, n values in a word (32 / bits).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_atlas.checkpoint.quantised.scales import spread

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place of each of the eight values in a word of AutoAWQ: value j is at bits [4·place, 4·place + 4)."""


def unpack(words: Tensor, bits: int, places: tuple[int, ...] = ()) -> Tensor:
    """Return the integers in the last dimension, int32 with n times as many columns, from 0 to 2^bits − 1.

    Args:
        words: int32 or uint32 [..., C/n].
        bits: bits of one value.
        places: the place of each value in a word, counted from the lowest bits; empty: in order.
    """
    shifts = torch.tensor(places or range(32 // bits), dtype=torch.int32) * bits
    values = words.view(torch.int32)[..., None] >> shifts
    values &= (1 << bits) - 1  # the shift keeps the sign, and the mask removes it
    return values.flatten(-2)


def gptq_zeros(words_GR: Tensor, bits: int, *, less_one: bool) -> Tensor:
    """Return the zero points [G, R] of words [G, R/n]; the first format stores them minus one.

    In that format a stored 2^bits − 1 means 2^bits, which is out of range. GPTQModel reads it so, AutoGPTQ as 0.
    """
    return unpack(words_GR, bits) + int(less_one)


def decode_gptq(words_CR: Tensor, scale_GR: Tensor, zeros_GR: Tensor, group_C: Tensor, bits: int) -> Tensor:
    """Return the weight (q − zero point) · scale, float32 [R, C].

    Args:
        words_CR: int32 [C/n, R], packed along the columns.
        scale_GR: [G, R].
        zeros_GR: integers [G, R].
        group_C: the group of every column [C].
        bits: bits of one value.
    """
    values_RC = unpack(words_CR.T.contiguous(), bits).float()
    group = group_C.long()
    values_RC -= zeros_GR.T.float()[:, group]
    values_RC *= scale_GR.T.float()[:, group]
    return values_RC


def decode_awq(words_CR: Tensor, scale_GR: Tensor, zeros_GR: Tensor, group: int) -> Tensor:
    """Return the weight (q − zero point) · scale, float32 [R, C].

    Args:
        words_CR: int32 [C, R/8], packed along the rows.
        scale_GR: [G, R].
        zeros_GR: int32 [G, R/8], packed alike.
        group: columns that share a scale; 0 means all.
    """
    values_RC, zeros_RG = (
        unpack(words, 4, AWQ_PLACES).float().T.contiguous() for words in (words_CR, zeros_GR)
    )
    rows, columns = values_RC.shape
    values_RC -= spread(zeros_RG, (1, group), rows, columns)
    values_RC *= spread(scale_GR.T, (1, group), rows, columns)
    return values_RC


def decode_affine(words: Tensor, scale: Tensor, offset: Tensor, bits: int, group: int) -> Tensor:
    """Return the weight q · scale + offset, float32 [..., R, C].

    Args:
        words: uint32 [..., R, C/n].
        scale: [..., R, G].
        offset: [..., R, G].
        bits: bits of one value.
        group: columns that share a scale; 0 means all.
    """
    values = unpack(words, bits).float()
    rows, columns = values.shape[-2:]
    values *= spread(scale, (1, group), rows, columns)
    values += spread(offset, (1, group), rows, columns)
    return values
