"""What a tensor says, whatever dtype it is stored in: when two tensors hold the same values, and a digest of them.

Two floating-point tensors hold the same values when every element is the same number: the dtype does not matter, −0 is
0, and every NaN is the same NaN. Tensors of integers, truth values or complex numbers hold the same values when they
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

PIECE = 1 << 17  # elements looked at a time: all that is made of them stays in the cache
FIRST = 512  # elements in which tensors that differ mostly do so
CANONICAL = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""What values are written in, narrowest first; each holds everything that the ones before it hold."""
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes in the same dtype and shape (NaN equals NaN, 0 differs from −0)."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    words_a, words_b = integers(a.reshape(-1)), integers(b.reshape(-1))
    # What differs mostly does so from the start.
    return np.array_equal(words_a[:FIRST], words_b[:FIRST]) and np.array_equal(words_a, words_b)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same number everywhere, as this module means it."""
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
    """The digest of a tensor's values, taken in whole or in consecutive parts.

    It is the sha256 of the values in the narrowest of BF16, F32 and F64 that holds all of them, little-endian, row by
    row, with −0 as 0 and one NaN; of the stored bytes where they are no floating-point numbers. So a BF16 tensor
    without −0 and NaN has the sha256 of its own bytes, as has its copy in F32.
    """

    def __init__(self) -> None:
        self._running: dict[str, _Hash] = {name: hashlib.sha256() for name in CANONICAL}

    def add(self, part: Tensor, *, whole: bool = False, clean: bool = False) -> None:
        """Take in the next part.

        Args:
            part: of any shape.
            whole: there is no other part, so that it need not be hashed in more than one dtype.
            clean: there is neither a −0 nor a NaN in it, so that its bytes need not be looked through for them.
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
        """A digest that has taken in the same parts."""
        other = ValueHash()
        other._running = {name: running.copy() for name, running in self._running.items()}
        return other

    def digest(self) -> str:
        """Dtype and sha256 in hexadecimal, such as ``BF16 3b0c…``."""
        name, running = next(iter(self._running.items()))
        return f"{name} {running.hexdigest()}"


def is_canonical(tensor: Tensor) -> bool:
    """Whether a `ValueHash` would write a tensor in its own dtype."""
    return tensor.is_floating_point() and CANONICAL[names_that_hold(tensor)[0]] is tensor.dtype


def names_that_hold(part: Tensor) -> list[str]:
    """Which of `CANONICAL` hold every value of a floating-point tensor exactly."""
    if part.dtype is torch.bfloat16 or part.dtype.itemsize == 1:
        return list(CANONICAL)
    names = ["F32", "F64"] if part.dtype is not torch.float64 else ["F64"]
    for name in reversed([name for name in CANONICAL if name not in names]):
        if not all(_same_numbers(piece, piece.to(CANONICAL[name])) for piece in _pieces(part)):
            break
        names.insert(0, name)
    return names


def integers(tensor: Tensor, size: int = 8) -> NDArray[Any]:
    """The bytes of a tensor as integers of `size` bytes, smaller ones where they do not divide its last dimension."""
    raw = tensor.contiguous().view(torch.uint8).numpy(force=True)
    width = next(width for width in (size, 4, 2, 1) if width <= size and raw.shape[-1] % width == 0)
    return raw.view(np.dtype(f"i{width}"))


def _canonical(piece: Tensor, dtype: torch.dtype, *, clean: bool) -> memoryview:
    """The bytes of some values in a dtype that holds them, with one zero and one NaN."""
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
