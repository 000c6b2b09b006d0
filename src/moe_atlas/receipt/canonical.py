"""The bytes of a receipt: strict ASCII JSON in a canonical spelling, and the digest of the receipt in it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from moe_atlas.checkpoint.headers.strict_json import parse_json_object


def encode_receipt(receipt: Mapping[str, Any]) -> bytes:
    """Return the canonical bytes: ASCII, keys in the order of the receipt, shortest floats, no NaN, a final newline.

    Raises:
        ValueError: for NaN or an infinity; in a receipt null with a reason stands for a missing number.
    """
    text = json.dumps(receipt, ensure_ascii=True, allow_nan=False, indent=1)
    return text.encode("ascii") + b"\n"


def receipt_digest(receipt: Mapping[str, Any]) -> str:
    """Return sha256 of the canonical bytes with ``evidence.receipt_sha256`` blank."""
    blank = dict(receipt)
    blank["evidence"] = {**receipt["evidence"], "receipt_sha256": ""}
    return hashlib.sha256(encode_receipt(blank)).hexdigest()


def sealed(
    receipt: Mapping[str, Any],
    window_name: str,
    window_bytes: bytes,
    token_data: tuple[str, bytes] | None = None,
) -> dict[str, Any]:
    """Return the receipt with its evidence block: each file beside it with its digest, and the receipt's own digest.

    Args:
        receipt: everything else.
        window_name: name of the window file.
        window_bytes: its bytes.
        token_data: name and bytes of the token file; None if the audit kept none.
    """
    out = copy.deepcopy(dict(receipt))
    out["evidence"] = {"windows": window_name, "sha256": hashlib.sha256(window_bytes).hexdigest()}
    if token_data is not None:
        name, data = token_data
        out["evidence"]["tokens"] = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
    out["evidence"]["receipt_sha256"] = ""
    out["evidence"]["receipt_sha256"] = receipt_digest(out)
    return out


def parse_receipt(raw: bytes, label: str) -> dict[str, Any]:
    """Parse a receipt strictly, and return its object.

    Raises:
        InputRefused: for anything that is not one JSON object, repeated keys, NaN or deep nesting.
    """
    return parse_json_object(raw, label)
