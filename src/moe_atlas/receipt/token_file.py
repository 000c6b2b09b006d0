"""The token data beside a receipt: optional evidence of single tokens, from which no interval and no verdict follows.

A receipt names the file with its digest if the audit kept it. A verifier holds the file against the digest and against
the window data: both came from the same tokens.

Legend: W windows, W₀ windows of base domains, T tokens of all windows, P scored positions of all windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import IntegrityError
from moe_atlas.receipt.array_file import ArrayFile, Arrays
from moe_atlas.receipt.files import read_bounded
from moe_atlas.system.limits import MAX_TOKEN_BYTES
from moe_atlas.text import shown
from moe_atlas.token_arrays import LARGEST, NLL_BASE, NLL_INCREASE, expert_dtype, move_names
from moe_atlas.window_arrays import LAYER_ARRAYS, OUTPUTS

TOKEN_FILE = ArrayFile("E_TOKENS", {"F16": np.dtype("<f2"), "U16": np.dtype("<u2"), "U8": np.dtype("u1")})
ROUNDING = 2.0**-11
"""Largest relative error of a number in float16."""
SMALLEST = 2.0**-25
"""Largest error of a number in float16 that is too small for a relative one."""
NATIVE = LAYER_ARRAYS["pair.native_boundary_drift"]

Problem = tuple[str, str]


def recorded_tokens(path: Path, receipt: Mapping[str, Any]) -> Arrays | None:
    """Return the token arrays of a verified receipt; None if its audit kept none.

    Args:
        path: the receipt, which may have been renamed since.
        receipt: its content.

    Raises:
        AtlasError: ``E_TOKENS`` (IntegrityError) when the file is not the recorded one; whatever keeps it from being
            read.
    """
    named = receipt["evidence"].get("tokens")
    if named is None:
        return None
    beside = path.parent / named["file"]
    raw = read_bounded(beside, MAX_TOKEN_BYTES)
    if hashlib.sha256(raw).hexdigest() != named["sha256"]:
        problem = "is not the token data that the receipt names"
        raise IntegrityError("E_TOKENS", shown(str(beside)), problem)
    return TOKEN_FILE.decode(raw, beside.name)


def token_problems(receipt: Mapping[str, Any], windows: Arrays, tokens: Arrays) -> list[Problem]:
    """Return where token arrays do not fit the receipt and its window data: names, forms, numbers.

    Args:
        receipt: a receipt of the right form.
        windows: window arrays of the right form.
        tokens: the arrays of its token file.
    """
    wanted = expected(receipt, windows, tokens)
    problems = [(name, "belongs to no layer of the receipt") for name in tokens if name not in wanted]
    problems += [(name, "missing") for name in wanted if name not in tokens]
    for name, (dtype, length) in wanted.items():
        array = tokens.get(name)
        if array is not None and (array.dtype != dtype or array.shape != (length,)):
            found = f"found {array.dtype} {list(array.shape)}"
            problems.append((name, f"expected {dtype} [{length}], {found}"))
    if not problems:
        problems += _loss_problems(windows, tokens)
        problems += [one for layer in receipt["layers"] for one in _move_problems(layer, windows, tokens)]
    return problems


def expected(
    receipt: Mapping[str, Any], windows: Arrays, tokens: Arrays
) -> dict[str, tuple[np.dtype[Any], int]]:
    """Return dtype and length of every token array, by name; arguments as of `token_problems`."""
    half = np.dtype(np.float16)
    scored, count = (int(windows[f"windows.{key}"].sum()) for key in ("scored", "tokens"))
    found = {NLL_BASE: (half, scored), NLL_INCREASE: (half, scored)}
    for layer in receipt["layers"]:
        names, dtype = move_names(layer["layer"]), expert_dtype(layer["experts"])
        replaced = int(tokens[names.moved].sum()) if names.moved in tokens else 0
        found |= {names.moved: (dtype, count), names.lost: (dtype, replaced), names.gained: (dtype, replaced)}
    return found


def _loss_problems(windows: Arrays, tokens: Arrays) -> Iterator[Problem]:
    """Hold the mean of each window's losses against the window data, to the rounding of float16."""
    base_W, tuned_W = (windows[OUTPUTS[f"nll_{side}"].name] for side in ("base", "tuned"))
    with np.errstate(invalid="ignore"):
        increase_W = tuned_W - base_W
    for name, known_W in ((NLL_BASE, base_W), (NLL_INCREASE, increase_W)):
        value_P = tokens[name].astype(np.float64)
        if np.isnan(value_P).any():
            yield name, "expected numbers or infinity"
            continue
        clipped_W = window_sums(np.abs(value_P) >= LARGEST, windows["windows.scored"]) > 0
        count_W = np.maximum(windows["windows.scored"], 1)
        mean_W, size_W = (
            window_sums(v, windows["windows.scored"]) / count_W for v in (value_P, np.abs(value_P))
        )
        with np.errstate(invalid="ignore"):
            near_W = np.abs(mean_W - known_W) <= 2 * ROUNDING * size_W + SMALLEST + 1e-9 * np.abs(known_W)
        wrong = np.flatnonzero(~near_W & ~clipped_W)
        if len(wrong):
            where = int(wrong[0])
            yield (
                name,
                f"window {where}: its mean is {mean_W[where]:.6g}, the window data say {known_W[where]:.6g}",
            )


def _move_problems(layer: Mapping[str, Any], windows: Arrays, tokens: Arrays) -> Iterator[Problem]:
    """Hold the replaced members of one layer against its experts and against its native boundary drift."""
    names = move_names(layer["layer"])
    moved_T, lost_M, gained_M = (
        tokens[name].astype(np.int64) for name in (names.moved, names.lost, names.gained)
    )
    if moved_T.max(initial=0) > layer["top_k"]:
        yield names.moved, f"expected at most {layer['top_k']} replaced members of a token"
    for name, experts_M in ((names.lost, lost_M), (names.gained, gained_M)):
        if experts_M.max(initial=0) >= layer["experts"]:
            yield name, f"expected numbers of {layer['experts']} experts"
    known_W = windows.get(NATIVE.at(layer["layer"]))
    if known_W is None:
        return
    count_W = windows["windows.tokens"]
    mean_W = (window_sums(moved_T, count_W) / np.maximum(count_W, 1) / layer["top_k"])[: len(known_W)]
    wrong = np.flatnonzero(~np.isnan(known_W) & (np.abs(mean_W - known_W) > 1e-9))
    if len(wrong):
        where = int(wrong[0])
        yield (
            names.moved,
            f"window {where}: its mean is {mean_W[where]:.6g}, the window data say {known_W[where]:.6g}",
        )


def window_sums(values: NDArray[Any], count_W: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the sum of each window's values, float64 [W]; the values follow the order of the windows."""
    window = np.repeat(np.arange(len(count_W)), count_W)
    return np.bincount(window, values, len(count_W)).astype(np.float64)
