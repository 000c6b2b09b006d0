"""When two tensors hold the same values, and a digest that says so long after one of them is gone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from moe_atlas.weights import values
from moe_atlas.weights.values import ValueHash, same_values

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SMALL = [torch.float8_e4m3fn, torch.float8_e5m2]
LONG = 2 * values.PIECE + 5


def digest(tensor, parts=1):
    found = ValueHash()
    for part in tensor.chunk(parts) if parts > 1 else [tensor]:
        found.add(part, whole=parts == 1)
    return found.digest()


def eighths(count=1000):
    """Numbers that every dtype here holds."""
    drawn = torch.randint(-7, 8, (count,), generator=torch.Generator().manual_seed(3))
    return drawn.double() / 8


@pytest.mark.parametrize("one", FLOATS + SMALL)
@pytest.mark.parametrize("other", FLOATS + SMALL)
def test_the_dtype_says_nothing(one, other):
    a, b = eighths(LONG).to(one), eighths(LONG).to(other)
    assert same_values(a, b)
    assert digest(a) == digest(b) == digest(b, parts=3)
    b[-1] = 1.5
    assert not same_values(a, b)
    assert digest(a) != digest(b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_neither_do_the_sign_of_zero_and_the_kind_of_nan(dtype):
    a, b = (torch.tensor([0.0, -0.0, 1.5, float("nan"), float("inf")], dtype=dtype) for _ in range(2))
    b[0], b[1] = -0.0, 0.0
    bits = b.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    bits[3] += 1  # another NaN
    assert same_values(a, b)
    assert digest(a) == digest(b)
    for position, value in ((3, 0.0), (4, float("-inf")), (0, float("nan"))):
        c = b.clone()
        c[position] = value
        assert not same_values(a, c)
        assert digest(a) != digest(c)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1.0, "BF16"),
        (1.0 + 2**-10, "F32"),
        (2.0**-140, "F32"),
        (1.0 + 2**-40, "F64"),
        (1e300, "F64"),
        (2.0**-130, "BF16"),
    ],
)
def test_values_are_written_in_the_narrowest_dtype_that_holds_all_of_them(value, name):
    tensor = eighths(LONG)
    tensor[-1] = value
    expected = tensor.to(values.CANONICAL[name])
    expected[expected == 0] = 0.0
    assert torch.equal(expected.double(), tensor)
    raw = expected.view(torch.uint8).numpy().tobytes()
    for parts in (1, 4):
        assert digest(tensor, parts) == f"{name} {hashlib.sha256(raw).hexdigest()}"


def test_every_bfloat16_and_every_float16_is_its_own_value():
    words = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16))
    for dtype in (torch.bfloat16, torch.float16):
        narrow = words.view(dtype)
        wide = narrow.double()
        assert same_values(narrow, wide)
        assert digest(narrow) == digest(wide) == digest(narrow.float())


def test_what_is_no_floating_point_number_is_its_bytes():
    whole = torch.arange(10)
    assert same_values(whole, whole.clone())
    assert not same_values(whole, whole.int())
    assert not same_values(whole, whole.double())
    assert digest(whole) == digest(whole, parts=5) != digest(whole.int())
    assert digest(torch.tensor([True])) != digest(torch.tensor([1], dtype=torch.uint8))


def test_shapes_are_compared():
    assert not same_values(torch.ones(6), torch.ones(2, 3))
