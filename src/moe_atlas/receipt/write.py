"""Write a receipt, read it back and derive it again; only then may a command exit with 0."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.derivation.derive import derive
from moe_atlas.errors import InputRefused, IntegrityError, ResourceExhausted, UsageError, out_of_memory
from moe_atlas.receipt.canonical import encode_receipt, sealed
from moe_atlas.receipt.files import own_paths, remove, require_free, token_path, window_path, write_errors
from moe_atlas.receipt.token_file import TOKEN_FILE
from moe_atlas.receipt.verify import verify
from moe_atlas.receipt.window_file import encode_windows
from moe_atlas.system.atomic_write import sync_folder, write_temporary
from moe_atlas.system.limits import MAX_RECEIPT_BYTES, MAX_TOKEN_BYTES, MAX_WINDOW_BYTES
from moe_atlas.text import shown


def check_writable(path: Path, force: bool = False) -> None:
    """Refuse early, before hours of work, what `write_receipt` would refuse at the end.

    Raises:
        UsageError: ``E_EXISTS`` when the receipt, window data or token data of its name are there already and are not
            to be replaced, be they of a receipt that was moved away; ``E_NO_FOLDER``;
            ``E_RECEIPT_NAME`` when it does not end in ``.json``: two receipts would share their window data, and a
            ledger would not find this one.
    """
    label = shown(str(path))
    if path.suffix != ".json":
        raise UsageError("E_RECEIPT_NAME", label, "a receipt's name ends in .json", "call it receipt.json")
    for target in own_paths(path):
        require_free(target, force)


def write_receipt(
    facts: Mapping[str, Any],
    windows: Mapping[str, NDArray[Any]],
    path: Path,
    *,
    tokens: Mapping[str, NDArray[Any]] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Derive the receipt, write it and the data beside it, read all files back and verify them.

    Temporary files are fsynced, renamed and their folder fsynced; then the receipt is re-opened, strictly
    parsed and re-derived. A failure leaves none of the files.

    Args:
        facts: what the audit measured.
        windows: the window arrays, float64 or int32.
        path: the receipt's path; the window data stand beside it.
        tokens: the token arrays, which go into a file of their own; None or empty without such a file.
        force: replace a receipt that is there, with all files beside it.

    Returns:
        The receipt as it stands on disk.

    Raises:
        UsageError: the receipt exists, or its folder cannot be written.
        InputRefused: ``E_PROBE_SIZE`` when a file would be longer than a verifier reads.
        ResourceExhausted: the disk is full; ``E_MEMORY`` when memory is; a receipt that could only not be read back is
            kept.
        IntegrityError: ``E_READBACK`` when what is on disk does not re-derive.
    """
    check_writable(path, force)
    step = "run it again where there is more memory; what --resume kept is there still"
    with memory_named(path, "no memory is left to derive it, so nothing was written", step):
        data = encode_windows(windows)
        kept = TOKEN_FILE.encode(tokens) if tokens else None
        token_data = None if kept is None else (token_path(path).name, kept)
        receipt = sealed(derive(facts, windows), window_path(path).name, data, token_data)
        raw = encode_receipt(receipt)
    _require_readable(path, len(raw), len(data), 0 if kept is None else len(kept))
    _install(path, raw, data, kept)
    try:
        report = verify(path)
    except BaseException as error:
        # What was measured for hours is whole on the disk, and every reader verifies it: it is kept.
        with memory_named(path, "is written, but no memory is left to read it back", f"atlas verify {path}"):
            if not out_of_memory(error):
                remove(*own_paths(path))
            raise
    if report.mismatches:
        remove(*own_paths(path))
        first = report.mismatches[0]
        problem = f"does not re-derive from disk: {first.path}: {first.problem}"
        raise IntegrityError("E_READBACK", shown(str(path)), problem, "nothing was kept; run it again")
    return receipt


@contextlib.contextmanager
def memory_named(path: Path, problem: str, step: str) -> Iterator[None]:
    """Turn a failed allocation into a one-line error, E_MEMORY."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ResourceExhausted("E_MEMORY", shown(str(path)), problem, step) from error


def _require_readable(path: Path, receipt: int, data: int, tokens: int) -> None:
    """Refuse to write files that are longer than a verifier reads."""
    for name, length, limit in (
        ("the receipt", receipt, MAX_RECEIPT_BYTES),
        ("the window data", data, MAX_WINDOW_BYTES),
        ("the token data", tokens, MAX_TOKEN_BYTES),
    ):
        if length > limit:
            problem = f"{name} would be {length} bytes, more than the {limit} that a verifier reads"
            raise InputRefused("E_PROBE_SIZE", shown(str(path)), problem)


def _install(path: Path, receipt: bytes, data: bytes, tokens: bytes | None) -> None:
    """Put the files in place, the receipt last; remove token data of the receipt that this receipt replaces."""
    contents = [(window_path(path), data), (token_path(path), tokens), (path, receipt)]
    wanted = [(target, content) for target, content in contents if content is not None]
    temporaries: list[Path] = []
    with write_errors(path):
        try:
            for target, content in wanted:
                temporaries.append(write_temporary(target, content))
            for temporary, (target, _) in zip(temporaries, wanted, strict=True):
                os.replace(temporary, target)
            if tokens is None:
                remove(token_path(path))
            sync_folder(path.parent)
        except BaseException:
            remove(*temporaries)
            if len(temporaries) == len(wanted) and not temporaries[0].exists():
                remove(*own_paths(path))
            raise


def as_arrays(windows: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return window arrays in the stored dtypes: int32 for integers, float64 for all others."""
    out: dict[str, NDArray[Any]] = {}
    for name, values in windows.items():
        array = np.asarray(values)
        out[name] = array.astype(np.int32 if array.dtype.kind in "iu" else np.float64)
    return out
