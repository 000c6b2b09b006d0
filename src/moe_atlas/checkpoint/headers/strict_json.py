"""Read JSON files of a checkpoint strictly, so that no two readers can disagree about their content."""

from __future__ import annotations

import json
import math
from typing import Any

from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.errors import InputRefused


class _Repeated(Exception):
    """An object holds the same key twice."""


def parse_json_object(raw: bytes, file: str, *, infinite: bool = False) -> dict[str, Any]:
    """Parse a JSON object strictly.

    Args:
        raw: the bytes of the whole file.
        file: the file's name, for messages.
        infinite: accept ``Infinity``, which Python writes into a configuration for an absent limit.

    Returns:
        The object; numbers with a fraction or an exponent as finite floats.

    Raises:
        InputRefused: ``E_DUP_KEY`` for an object with the same key twice; ``E_TYPE`` if the file is
            no object; ``E_JSON`` for anything that is not JSON in UTF-8, for NaN and infinities, half
            surrogate pairs and deep nesting.
    """
    try:
        value = (_INFINITE if infinite else _STRICT).decode(raw.decode("utf-8"))
        # Python's decoder accepts half a surrogate pair, but no encoder can write it again.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Repeated as error:
        problem = "the key stands twice in one object; readers disagree about which one counts"
        raise refusal("E_DUP_KEY", file, problem, name=str(error)) from None
    except RecursionError:
        raise _not_json(file, "nested too deeply") from None
    except UnicodeEncodeError:
        raise _not_json(file, "a string contains half a surrogate pair") from None
    except UnicodeDecodeError as error:
        raise _not_json(file, f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise _not_json(file, str(error)) from None
    if not isinstance(value, dict):
        raise refusal("E_TYPE", file, "must hold one JSON object")
    return value


def _not_json(file: str, problem: str) -> InputRefused:
    return refusal(
        "E_JSON", file, f"is not strict JSON: {shown(problem)}", "mend the file or download it again"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Repeated(key)
            seen.add(key)
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _infinity(text: str) -> float:
    return float(text) if text == "Infinity" else _constant(text)


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)
_INFINITE = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_infinity)
