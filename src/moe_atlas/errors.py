"""All errors that a user can cause, with their stable codes and exit codes.

The command line catches only `AtlasError`. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of all commands; a pipeline may rely on them."""

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
    None: Exit.PASS,  # a baseline tests nothing
}


NEXT_STEPS = {
    "E_ADAPTER": "merge it with PEFT, and give the merged checkpoint",
    "E_ATTEMPT": "give the receipt of another tune of this base, or leave --attempt out",
    "E_CALIBRATION": "calibrate on audits that protect layers and measure base domains",
    "E_CHANGED": "wait until no program writes to the checkpoint, then run the command again",
    "E_FAMILY": "leave the checkpoint as it is; compare its config.json and tensors with those of its release",
    "E_KEY": "give an unencrypted PEM private key that can be read",
    "E_KIND": "give the receipt of an audit",
    "E_LEDGER": "restore the ledger from a copy",
    "E_LEDGER_OPEN": "check its owner and permissions, and that it is no link",
    "E_MEMORY": "free some memory, or use a machine with more memory",
    "E_NOT_REGULAR": "give the file itself, not a folder, a pipe or a link",
    "E_NO_FILE": "check its name",
    "E_NO_FOLDER": "create it first",
    "E_NO_RECEIPT": "give receipts, or folders that hold them",
    "E_NO_WINDOWS": "register at least one domain of role base",
    "E_POLICY_MISSING": "check the name given with --policy-from",
    "E_PROBE_DUPLICATE": "take the repeated document out of the source",
    "E_PROBE_LOCK": "restore the lock, or register anew with atlas register --force",
    "E_PROBE_SIZE": "register fewer windows or resamples",
    "E_PROBE_TOKENIZER": "give the tokenizer.json that belongs to the checkpoint",
    "E_PROBE_VALUE": "correct the probe file and register it again",
    "E_QUANT": "audit the checkpoint in its original format",
    "E_READ": "check its owner and permissions",
    "E_REPEATED": "give every receipt once",
    "E_RUN": "check the name, and the folder given with --runs",
    "E_SIZE": "check that this is the intended file",
    "E_TOKENS": "restore the token data that were written with the receipt",
    "E_WINDOWS": "restore the window data that were written with the receipt",
    "E_WRITE": "free some disk space, or choose a folder that you can write to",
}
"""Default next step by error code, for an error that is raised without a more specific one."""


_ALLOCATIONS = (
    "not enough memory",  # torch
    "can't allocate memory",
    "out of memory",  # CUDA
    "cannot allocate memory",  # the dynamic loader, fork
    "failed to map segment",
    "can't start new thread",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation, which Python and libraries report in several ways."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    named = isinstance(error, RuntimeError | ImportError | OSError)
    return isinstance(error, MemoryError) or (
        named and any(words in str(error).lower() for words in _ALLOCATIONS)
    )


class AtlasError(Exception):
    """An error that prints as one line: code, place, problem and next step.

    Attributes:
        code: stable identifier such as ``E_COVER``.
        where: the file, tensor or key with the problem.
        problem: the expected and the found state.
        next_step: an action that helps the reader.
        exit_code: exit code of the process for this class of errors.
    """

    exit_code: Exit = Exit.REFUSED

    def __init__(self, code: str, where: str, problem: str, next_step: str = "") -> None:
        super().__init__(code, where, problem, next_step)
        self.code = code
        self.where = where
        self.problem = problem
        self.next_step = next_step or NEXT_STEPS.get(code, "")

    def lines(self) -> list[str]:
        """Return the lines to print."""
        return [str(self)]

    def __str__(self) -> str:
        tail = f"; {self.next_step}" if self.next_step else ""
        return f"{self.code} {self.where}: {self.problem}{tail}"


class InputRefused(AtlasError):
    """A checkpoint, probe, lock or receipt is unreadable or must not be trusted (exit 4)."""


class UsageError(AtlasError):
    """A command line or configuration cannot be carried out as given (exit 2)."""

    exit_code = Exit.USAGE


class IntegrityError(AtlasError):
    """An input changed during the run, or a receipt or ledger does not verify (exit 5)."""

    exit_code = Exit.CHANGED


class ResourceExhausted(AtlasError):
    """The process ran out of memory, disk space or time (exit 6)."""

    exit_code = Exit.EXHAUSTED
