"""Sign a statement as a DSSE envelope with securesystemslib, which is imported only if a key is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.reading.bounded_files import read_bounded
from moe_atlas.text import shown

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_KEY_BYTES = 1 << 16
_INSTALL = 'pip install "moe-atlas[sign]"'


def sign(statement: bytes, key: Path) -> dict[str, Any]:
    """Return a DSSE envelope of a statement, signed with a private key.

    Args:
        statement: the payload.
        key: an unencrypted PEM file with an Ed25519, ECDSA or RSA private key.

    Raises:
        UsageError: ``E_SIGN`` if securesystemslib is not installed.
        InputRefused: ``E_KEY`` for a file that is no such private key.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
    except ImportError:
        raise UsageError(
            "E_SIGN", "--sign", "needs securesystemslib, which is not installed", _INSTALL
        ) from None
    raw = read_bounded(key, MAX_KEY_BYTES, "E_KEY")
    try:
        signer = CryptoSigner(load_pem_private_key(raw, password=None))
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
    ):  # TypeError: the library's word for an encrypted key
        problem = "is no unencrypted PEM private key of a supported kind (Ed25519, ECDSA, RSA)"
        raise InputRefused("E_KEY", shown(str(key)), problem) from None
    envelope = Envelope(statement, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    described: dict[str, Any] = envelope.to_dict()
    return described
