"""Word a refusal: one line that names the file and the tensor or key, inert in a terminal."""

from __future__ import annotations

from moe_atlas.errors import InputRefused
from moe_atlas.text import shown

__all__ = ["RE_DOWNLOAD", "place", "refusal", "shown"]

RE_DOWNLOAD = "download or copy this file again"

_PATH_CHARACTERS = 512


def refusal(
    code: str, file: str, problem: str, next_step: str = "", *, name: str | None = None
) -> InputRefused:
    """Return the refusal of a file, or of a tensor or key in it (exit code 4)."""
    return InputRefused(code, place(file, name), problem, next_step)


def place(file: str, name: str | None = None) -> str:
    """Name a file, and a tensor or key of it, in a message."""
    path = shown(file, _PATH_CHARACTERS)
    return path if name is None else f"{path}: '{shown(name)}'"
