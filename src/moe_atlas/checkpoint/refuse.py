"""How this package words a refusal: one line, naming the file and the tensor or key, inert in a terminal."""

from __future__ import annotations

from moe_atlas.errors import InputRefused

RE_DOWNLOAD = "download or copy this file again"

_SHOWN_CHARACTERS = 96


def shown(text: str) -> str:
    """Return text from a file or a path so that it can neither break the line nor steer a terminal.

    Characters that do not print (controls, bidi and other format characters, lone surrogates) become
    backslash escapes; anything longer than 96 characters is cut in the middle.
    """
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def refusal(
    code: str, file: str, problem: str, next_step: str = "", *, name: str | None = None
) -> InputRefused:
    """Build the refusal of one file, or of one tensor or key of it (exit code 4)."""
    where = shown(file) if name is None else f"{shown(file)}: '{shown(name)}'"
    return InputRefused(code, where, problem, next_step)
