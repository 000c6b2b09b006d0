"""How this package words a refusal: one line, naming the file and the tensor or key, inert in a terminal."""

from __future__ import annotations

from moe_atlas.errors import InputRefused

RE_DOWNLOAD = "download or copy this file again"

_NAME_CHARACTERS = 96
_PATH_CHARACTERS = 512


def shown(text: str, limit: int = _NAME_CHARACTERS) -> str:
    """Return text from a file or a path so that it can neither break the line nor steer a terminal.

    Characters that do not print (controls, bidi and other format characters, lone surrogates) become
    backslash escapes; anything longer than the limit is cut in the middle.
    """
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def refusal(
    code: str, file: str, problem: str, next_step: str = "", *, name: str | None = None
) -> InputRefused:
    """Build the refusal of one file, or of one tensor or key of it (exit code 4)."""
    return InputRefused(code, place(file, name), problem, next_step)


def place(file: str, name: str | None = None) -> str:
    """Name a file, and a tensor or key of it, in a message."""
    path = shown(file, _PATH_CHARACTERS)
    return path if name is None else f"{path}: '{shown(name)}'"
