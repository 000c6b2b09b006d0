"""Parse configuration keys that a user accepts on record, as a command line spells them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from moe_atlas.configuration.unread import same
from moe_atlas.errors import UsageError

OPTION = "--accept-config-key"


def parse_accepted(texts: Iterable[str]) -> dict[str, Any]:
    """Return keys and values of ``KEY=VALUE`` texts; a value that is no JSON is a string.

    Raises:
        UsageError: E_ACCEPT for a text without key or value, and for one key with two values.
    """
    accepted: dict[str, Any] = {}
    for text in texts:
        key, separator, written = text.partition("=")
        if not key or not separator:
            raise UsageError(
                "E_ACCEPT", OPTION, f"expected KEY=VALUE, found {text!r}", "as the refusal writes it"
            )
        value = _value(written)
        if key in accepted and not same(accepted[key], value):
            raise UsageError(
                "E_ACCEPT", f"{OPTION} {key}", "accepted with two values", "accept the one that stands there"
            )
        accepted[key] = value
    return accepted


def written(accepted: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return accepted keys as a receipt holds them, each value as JSON text."""
    return [
        {"key": key, "value": json.dumps(value, sort_keys=True)} for key, value in sorted(accepted.items())
    ]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
