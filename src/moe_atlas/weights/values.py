"""Values of tensors independent of their stored dtype: equality of values, and a digest of values.

Two floating-point tensors hold the same values if every element is the same number. The dtype does not matter, −0
equals 0, and every NaN equals every NaN. Tensors of integers, booleans or complex numbers hold the same values if they
hold the same bytes in the same dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 1 << 17  # elements processed at a time, so that temporaries stay in the cache
FIRST = 512  # elements compared first: most tensors that differ, differ there
CANONICAL = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Dtypes for writing values, narrowest first; each holds every value of the narrower ones."""
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bytes in the same dtype and shape; 0 differs from −0."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    words_a, words_b = integers(a.reshape(-1)), integers(b.reshape(-1))
    # Most tensors that differ, differ at the start.
    return np.array_equal(words_a[:FIRST], words_b[:FIRST]) and np.array_equal(words_a, words_b)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have one shape and hold the same values, as this module defines them."""
    if a.shape != b.shape:
        return False
    if same_bytes(a, b):
        return True
    if not (a.is_floating_point() and b.is_floating_point()):
        return False
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    if not _same_numbers(flat_a[:FIRST], flat_b[:FIRST]):
        return False
    return all(map(_same_numbers, flat_a.split(PIECE), flat_b.split(PIECE)))


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32  # holds both exactly
    a, b = a.to(wide), b.to(wide)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class ValueHash:
    """A running digest of a tensor's values, added whole or in consecutive parts.

    The digest is the sha256 of the values in the narrowest of BF16, F32 and F64 that holds all of them: little-endian,
    row by row, with −0 written as 0 and every NaN as one NaN. For tensors without floating-point numbers, it is the
    sha256 of the stored bytes. So a BF16 tensor without −0 and NaN has the sha256 of its own bytes, and its copy in F32
    has the same digest.
    """

    def __init__(self) -> None:
        self._running: dict[str, _Hash] = {name: hashlib.sha256() for name in CANONICAL}

    def add(self, part: Tensor, *, whole: bool = False, clean: bool = False) -> None:
        """Add the next part.

        Args:
            part: the values, in any shape.
            whole: whether this is the only part, so that one dtype suffices for hashing.
            clean: whether the part holds neither −0 nor NaN, so that the hash need not search for them.
        """
        if not part.is_floating_point():
            self._running = {
                name: self._running.get(name, hashlib.sha256()) for name in (_named(part.dtype),)
            }
            for piece in _pieces(part):
                self._running[_named(part.dtype)].update(integers(piece).data)
            return
        held = names_that_hold(part)
        self._running = {name: running for name, running in self._running.items() if name in held}
        if whole:
            self._running = dict([next(iter(self._running.items()))])
        for piece in _pieces(part):
            for name, running in self._running.items():
                running.update(_canonical(piece, CANONICAL[name], clean=clean))

    def copy(self) -> ValueHash:
        """Return an independent digest of the parts added so far."""
        other = ValueHash()
        other._running = {name: running.copy() for name, running in self._running.items()}
        return other

    def digest(self) -> str:
        """Return dtype and hexadecimal sha256, such as ``BF16 3b0c…``."""
        name, running = next(iter(self._running.items()))
        return f"{name} {running.hexdigest()}"


def is_canonical(tensor: Tensor) -> bool:
    """Return whether a `ValueHash` writes a tensor in the tensor's own dtype."""
    return tensor.is_floating_point() and CANONICAL[names_that_hold(tensor)[0]] is tensor.dtype


def names_that_hold(part: Tensor) -> list[str]:
    """Return the names in `CANONICAL` whose dtypes hold every value of a floating-point tensor exactly."""
    if part.dtype is torch.bfloat16 or part.dtype.itemsize == 1:
        return list(CANONICAL)
    names = ["F32", "F64"] if part.dtype is not torch.float64 else ["F64"]
    for name in reversed([name for name in CANONICAL if name not in names]):
        if not all(_same_numbers(piece, piece.to(CANONICAL[name])) for piece in _pieces(part)):
            break
        names.insert(0, name)
    return names


def integers(tensor: Tensor, size: int = 8) -> NDArray[Any]:
    """Return the bytes of a tensor as integers of `size` bytes, or smaller if `size` does not divide a row's bytes."""
    raw = tensor.contiguous().view(torch.uint8).numpy(force=True)
    width = next(width for width in (size, 4, 2, 1) if width <= size and raw.shape[-1] % width == 0)
    return raw.view(np.dtype(f"i{width}"))


def _canonical(piece: Tensor, dtype: torch.dtype, *, clean: bool) -> memoryview:
    """Return the bytes of some values in a dtype that holds them, with one zero and one NaN."""
    if clean:
        return memoryview(piece.to(dtype).view(_BITS[dtype]).numpy().data)
    values = piece.to(dtype, copy=True)
    values.masked_fill_(values.isnan(), torch.nan)
    bits = values.view(_BITS[dtype])
    bits.masked_fill_(bits == torch.iinfo(bits.dtype).min, 0)  # the bits of −0
    return memoryview(bits.numpy().data)


def _pieces(part: Tensor) -> Iterator[Tensor]:
    yield from part.reshape(-1).cpu().split(PIECE)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
