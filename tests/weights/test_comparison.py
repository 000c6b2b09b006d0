"""What one look at two tensors finds, against sums over plain float64 arrays."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from moe_atlas.weights import comparison
from moe_atlas.weights.comparison import AS_STORED, Narrowing, TensorComparison
from moe_atlas.weights.values import PIECE, same_bytes

SHAPES = [(), (1,), (7,), (1031,), (0, 4), (96, 64), (40, 2 * 1031), (3, 50, 48), (2, 5 * PIECE)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def compare(name, kind, layer, base, tuned, **options):
    look = TensorComparison(base.shape, options.pop("narrowing", None))
    look.add(base, tuned, **options)
    return look.change(name, kind, layer)


def drawn(shape, dtype, seed=0):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    tensor = torch.where(tensor.abs() < 0.05, tensor * 0.0, tensor)  # some zeros, of either sign
    return tensor.to(dtype)


def expected(base, tuned):
    """Squares and zeros as (‖W0‖², ‖W1−W0‖², zeros of both)."""
    one, two = (tensor.double().numpy() for tensor in (base, tuned))
    return (
        float((one**2).sum()),
        float(((two - one) ** 2).sum()),
        (int((one == 0).sum()), int((two == 0).sum())),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_changed_tensor(shape, dtype):
    base, tuned = drawn(shape, dtype), drawn(shape, dtype, seed=1)
    found = compare("w", "attention", 3, base, tuned)
    square, change, zeros = expected(base, tuned)
    assert found.base_square == pytest.approx(square, rel=1e-7)
    assert found.change_square == pytest.approx(change, rel=1e-7)
    assert (found.zeros, found.nonfinite, found.elements) == (zeros, (0, 0), base.numel())
    assert found.identical is (base.numel() == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bytes_change_by_exactly_nothing(dtype):
    base = drawn((96, 64), dtype)
    found = compare("w", "attention", 3, base, base.clone())
    assert found.identical is True
    assert (found.change_square, found.relative_change) == (0.0, 0.0)
    lone = compare("w", "attention", 3, base, None)
    assert (lone.base_square, lone.identical) == (found.base_square, None)
    assert (lone.zeros, lone.nonfinite) == ((found.zeros[0], None), (0, None))
    assert found.zeros[1] == found.zeros[0] == expected(base, base)[2][0] > 0


def test_zero_and_minus_zero_are_two_bytes_and_one_value():
    base, tuned = torch.zeros(64, 8), torch.zeros(64, 8)
    tuned[5, 5] = -0.0
    found = compare("w", "attention", 3, base, tuned)
    assert (found.identical, found.change_square, found.zeros) == (True, 0.0, (512, 512))
    assert (found.recast, found.moved) == (True, False)
    assert compare("w", "attention", 3, base, base.clone()).recast is False


def test_what_only_rounds_to_another_dtype_is_told_from_a_change():
    base = drawn((96, 64), torch.float32)
    narrowing = Narrowing(lambda tensor: tensor.bfloat16(), certain=True)
    rounded = base.bfloat16()
    found = compare("w", "attention", 3, base, rounded, narrowing=narrowing)
    assert (found.identical, found.rounded, found.moved) == (False, True, False)
    rounded[-1, -1] += 1
    found = compare("w", "attention", 3, base, rounded, narrowing=narrowing)
    assert (found.identical, found.rounded, found.moved) == (False, False, True)
    unsure = Narrowing(lambda tensor: tensor.bfloat16(), certain=False)
    found = compare("w", "attention", 3, base, rounded, narrowing=unsure)
    assert (found.identical, found.rounded, found.moved) == (False, None, False)
    looks = TensorComparison(base.shape, narrowing)  # in parts, all of which must be rounded only
    looks.add(base[:90], rounded[:90])
    looks.add(base[90:], rounded[90:])
    assert looks.change("w", "attention", 3).rounded is False


def test_the_digest_of_values_is_that_of_the_stored_bytes_where_these_are_written_alike():
    base = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored = {"stored": (True, True)}
    tuned = base.clone()
    assert compare("w", "norm", 1, base, tuned, **stored).values == (AS_STORED, None)
    assert compare("w", "norm", 1, base, base.float(), **stored).values == (AS_STORED, None)
    tuned[0, 0] += 1
    assert compare("w", "norm", 1, base, tuned, **stored).values == (AS_STORED, AS_STORED)
    widened = compare("w", "norm", 1, base, tuned.float(), **stored).values
    assert widened == (AS_STORED, f"BF16 {hashlib.sha256(raw(tuned)).hexdigest()}")
    tuned[0, 1] = -0.0
    without = tuned.clone()
    without[0, 1] = 0.0
    expected = f"BF16 {hashlib.sha256(raw(without)).hexdigest()}"
    assert compare("w", "norm", 1, base, tuned, **stored).values == (AS_STORED, expected)
    assert compare("w", "norm", 1, base, tuned).values[1] == expected
    assert compare("w", "norm", 1, base, without).values[1] == expected


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("first", [0, 20])
def test_values_that_part_late_have_their_own_digest(first):
    base, tuned = drawn((97, 640), torch.bfloat16), drawn((97, 640), torch.bfloat16, seed=1)
    tuned[:first] = base[:first]
    tuned[60:] = base[60:]
    looks = TensorComparison(base.shape)
    for begin, end in ((0, 10), (10, 20), (20, 60), (60, 97)):
        looks.add(base[begin:end], tuned[begin:end])
    whole = compare("w", "head", None, tuned, None).values[0]
    assert looks.change("w", "head", None).values[1] == whole


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-17, 1e25, 1e37])
def test_squares_that_float32_would_lose_or_overflow(scale):
    base, tuned = drawn((96, 64), torch.float32) * scale, drawn((96, 64), torch.float32, seed=1) * scale
    base[:48], tuned[:48] = drawn((48, 64), torch.float32), drawn((48, 64), torch.float32, seed=2)
    looks = TensorComparison(base.shape)
    looks.add(base, tuned)
    rows = looks.row_squares(0), looks.row_squares(1)
    for side, tensor in enumerate((base, tuned)):
        assert rows[side] == pytest.approx(np.square(tensor.double().numpy()).sum(1), rel=1e-6, abs=0)
    square, change, _ = expected(base, tuned)
    found = looks.change("w", "attention", 3)
    assert (found.base_square, found.change_square) == pytest.approx((square, change), rel=1e-7)


def test_a_change_that_float32_would_lose():
    base = torch.full((4, 64), 1e-20)
    base[0] = 1.0
    found = compare("w", "attention", 3, base, base * torch.tensor([1.0, 1.0, 1.0, 2.0])[:, None])
    assert found.change_square == pytest.approx(64e-40, rel=1e-6, abs=0)


def test_float64_is_not_rounded():
    base = torch.full((4, 64), 1.0 + 2.0**-26, dtype=torch.float64)
    found = compare("w", "attention", 3, base, base + (1.0 + 2.0**-26))
    assert found.base_square == found.change_square == 256 * (1.0 + 2.0**-26) ** 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_counted_where_it_is(dtype):
    base, tuned = drawn((96, 64), dtype), drawn((96, 64), dtype, seed=1)
    tuned[3, 3], tuned[3, 9], tuned[90, 1] = math.nan, math.inf, -math.inf
    found = compare("w", "attention", 3, base, tuned)
    assert found.nonfinite == (0, 3)
    assert found.relative_change is None
    assert compare("w", "attention", 3, tuned, tuned.clone()).nonfinite == (3, 3)
    assert compare("w", "attention", 3, tuned, None).nonfinite == (3, None)


def test_other_dtypes_than_those_that_are_multiplied():
    base, tuned = torch.arange(-128, 128, dtype=torch.int8), torch.arange(0, 256).to(torch.uint8)
    found = compare("w", "other", None, base, tuned)
    square, change, zeros = expected(base, tuned)
    assert (found.base_square, found.change_square, found.zeros) == (square, change, zeros)
    mixed = compare("w", "other", None, drawn((96, 64), torch.bfloat16), drawn((96, 64), torch.float32))
    assert mixed.identical is False
    assert mixed.change_square > 0
    minus = torch.tensor([0, 128], dtype=torch.uint8)
    assert compare("w", "other", None, minus.view(torch.float8_e4m3fn), None).zeros[0] == 2
    assert (
        compare("w", "other", None, minus.view(torch.float8_e4m3fnuz), None).zeros[0] == 1
    )  # the other is NaN


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_add_up_to_the_same_bits(dtype, monkeypatch):
    base, tuned = drawn((97, 640), dtype), drawn((97, 640), dtype, seed=1)
    tuned[10:40] = base[10:40]
    base[50:60] *= 1e-30  # float32 would lose these
    whole = compare("w", "embedding", None, base, tuned)
    for piece in (PIECE, 2000):
        monkeypatch.setattr(comparison, "PIECE", piece)
        looks = TensorComparison(base.shape)
        for begin, end in ((0, 10), (10, 40), (40, 41), (41, 97)):
            looks.add(base[begin:end], tuned[begin:end])
        assert looks.change("w", "embedding", None) == whole
    for first, second in ((base, tuned), (tuned, base)):
        looks = TensorComparison(base.shape)
        looks.add(base[:40], first[:40])
        looks.add(base[40:], second[40:])
        assert looks.change("w", "embedding", None).identical is False


def test_a_side_that_is_zero_throughout():
    looks = TensorComparison((4, 6))
    looks.add(drawn((4, 6), torch.bfloat16), -torch.zeros(4, 6, dtype=torch.bfloat16))
    assert (looks.zeroed(0), looks.zeroed(1)) == (False, True)


def test_same_bytes_see_the_last_one():
    base = drawn((96, 65), torch.bfloat16)
    other = base.clone()
    assert same_bytes(base, other)
    other[-1, -1] += 1
    assert not same_bytes(base, other)
    assert not same_bytes(base, base.reshape(65, 96))
    assert not same_bytes(base, base.view(torch.float16))
