"""Names of special token ids, from the files beside a checkpoint. No number depends on them, only names in reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import AtlasError

ROLES = ("bos", "eos", "pad")
TOKENIZER_CONFIG = "tokenizer_config.json"
MOST_BYTES = 4 << 20
MOST_IDS = 64


def special_ids(checkpoint: TensorSource) -> dict[int, str]:
    """Return names by id: bos, eos and pad of the configurations, and the tokens that a tokenizer's settings add.

    A missing, unreadable or malformed file names no id. The result has at most MOST_IDS ids, those with a role first.
    """
    names: dict[int, list[str]] = {}
    generation, tokenizer = (
        _object(checkpoint, name) for name in ("generation_config.json", TOKENIZER_CONFIG)
    )
    nested = checkpoint.config.get("text_config")
    for found in (checkpoint.config, nested if isinstance(nested, dict) else {}, generation):
        for number, name in _roles(found):
            names.setdefault(number, []).append(name)
    for number, name in _added(tokenizer):
        names.setdefault(number, []).append(name)
    return {number: ", ".join(dict.fromkeys(found)) for number, found in list(names.items())[:MOST_IDS]}


def _roles(config: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    for role in ROLES:
        value = config.get(f"{role}_token_id")
        for number in value if isinstance(value, list) else [value]:
            if _is_id(number):
                yield number, role


def _added(config: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    added = config.get("added_tokens_decoder")
    for number, token in added.items() if isinstance(added, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if number.isdecimal() and number.isascii() and len(number) < 10 and isinstance(content, str):
            yield int(number), content[:40]


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _object(checkpoint: TensorSource, name: str) -> dict[str, Any]:
    try:
        raw = checkpoint.read_small(name, MOST_BYTES)
        return {} if raw is None else parse_json_object(raw, name)
    except AtlasError:
        return {}
