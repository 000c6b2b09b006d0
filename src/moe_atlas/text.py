"""Safe display of text from files, and the spelling of numbers and sizes.

Every escape builds on `shown`: a terminal prints `shown`, Markdown prints `markdown`, and a workflow command of GitHub
Actions prints `workflow`. HTML and XML pass `shown` through an escaping writer (Jinja2, ElementTree).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from moe_atlas.errors import UsageError

_NAME_CHARACTERS = 96
_MARKDOWN = re.compile(r"[\\`*_<>&|~#!@{}$]|\](?=[(\[:])|:(?=//)")
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}


def shown(text: str, limit: int = _NAME_CHARACTERS) -> str:
    """Return text from a file or path in a form that cannot break a line or control a terminal or a pipeline's log.

    Unprintable characters (controls, bidi and other format characters, lone surrogates) become backslash escapes. Text
    longer than the limit loses its middle. GitHub Actions obeys ``::`` at the start of a line, also after blanks, and
    ``##[`` anywhere in a line. A table may break lines anywhere, so both are escaped everywhere.
    """
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}...{text[-half:]}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text.replace("::", r":\x3a").replace("##[", r"#\x23[")


def quoted(text: str, limit: int = 80) -> str:
    """Return text of a probe set in quotes, on one line: unprintable characters escaped, long text cut.

    A terminal prints the whole message through `shown`.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(cut)


def not_there(path: str | os.PathLike[str], said: str = "does not exist") -> str:
    """Return the statement that a path is not there; for a relative path, it names the absolute path."""
    return said if os.path.isabs(path) else f"{said}; looked for {shown(os.path.abspath(path), 512)}"


def markdown(text: str, limit: int = _NAME_CHARACTERS) -> str:
    """Return `shown` text escaped for Markdown: it cannot start a link, image, mention, formula, tag or table cell."""
    escaped = _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", shown(text, limit))
    return escaped.replace("www.", "www&#46;")


def workflow(text: str, limit: int = 400) -> str:
    """Return `shown` text escaped for the message or a property of a ``::error::`` line of GitHub Actions."""
    escapes = {"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"}
    return "".join(escapes.get(character, character) for character in shown(text, limit))


def number(value: Any, digits: int = 3) -> str:
    """Format a number with a few significant digits; a missing or non-finite value becomes a dash."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    return "0" if value == 0 else f"{value:.{digits}g}"


def interval(value: Any) -> str:
    """Format an interval: ``estimate [low, high]``; with one bound ``estimate, at most high`` or ``at least low``."""
    if not isinstance(value, dict) or value.get("estimate") is None:
        return "–"
    estimate, low, high = (number(value.get(bound)) for bound in ("estimate", "low", "high"))
    if "–" not in (low, high):
        return f"{estimate} [{low}, {high}]"
    bounds = [
        f"{word} {bound}"
        for word, bound in (("at least", low), ("at most", high))
        if bound not in ("–", estimate)
    ]
    return ", ".join([estimate, *bounds])


def ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers with consecutive numbers joined: ``0–2, 5``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)


def size(count: float) -> str:
    """Format a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_size(text: str) -> int:
    """Parse a size such as ``1500M``, ``2GiB`` or ``4096`` to bytes.

    Raises:
        UsageError: E_SIZE if the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        step = "write it like --memory 2GiB or --memory 1500M"
        raise UsageError("E_SIZE", f"--memory {shown(text)}", "is not a size", step)
    return int(float(match[1]) * _UNITS[match[2]])
