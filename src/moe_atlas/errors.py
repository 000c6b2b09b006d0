"""Every error a user can meet, with its stable code and the exit code it ends in.

The command line catches `AtlasError` and nothing else; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command; a pipeline may rely on them."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    INCONCLUSIVE = 3
    REFUSED = 4
    CHANGED = 5
    EXHAUSTED = 6


VERDICT_EXIT = {
    "pass": Exit.PASS,
    "fail": Exit.FAIL,
    "inconclusive": Exit.INCONCLUSIVE,
    None: Exit.PASS,  # a baseline is recorded, nothing is tested
}


class AtlasError(Exception):
    """One clear line: code, where, what was expected and found, and what to do next.

    Attributes:
        code: stable identifier such as ``E_COVER``.
        where: the file, tensor or key concerned.
        problem: what was expected and what was found.
        next_step: what the reader can do about it; may be empty.
        exit_code: the process exit code this class of error ends in.
    """

    exit_code: Exit = Exit.REFUSED

    def __init__(self, code: str, where: str, problem: str, next_step: str = "") -> None:
        super().__init__(code, where, problem, next_step)
        self.code = code
        self.where = where
        self.problem = problem
        self.next_step = next_step

    def __str__(self) -> str:
        tail = f"; {self.next_step}" if self.next_step else ""
        return f"{self.code} {self.where}: {self.problem}{tail}"


class InputRefused(AtlasError):
    """A checkpoint, probe, lock or receipt that must not be trusted or cannot be read (exit 4)."""


class UsageError(AtlasError):
    """A command line or configuration that cannot be carried out as given (exit 2)."""

    exit_code = Exit.USAGE


class IntegrityError(AtlasError):
    """An input changed during the run, or a receipt or ledger does not verify (exit 5)."""

    exit_code = Exit.CHANGED


class ResourceExhausted(AtlasError):
    """Out of memory, disk or time (exit 6)."""

    exit_code = Exit.EXHAUSTED
