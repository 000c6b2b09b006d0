"""Run command lines in forked children of one interpreter, each under several kinds of standard output.

Reads a JSON list of [label, output kind, arguments] from the file named first; writes a JSON list of
[label, output kind, exit code, standard error] to the file named second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile

import moe_atlas.api
import moe_atlas.auditing.run  # noqa: F401  imported once, before the forks
from moe_atlas import cli


def stand_in(kind: str) -> None:
    """Make file descriptor 1 what the cell asks for."""
    if kind == "closed":
        os.close(1)
        sys.stdout = None
        return
    if kind == "pipe":  # whose reader has left
        reader, writer = os.pipe()
        os.close(reader)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    else:
        writer = os.open("/dev/full" if kind == "full" else os.devnull, os.O_WRONLY)
    os.dup2(writer, 1)


def child(arguments: list[str], kind: str, errors: int) -> None:
    os.dup2(errors, 2)
    stand_in(kind)
    sys.argv = ["atlas", *arguments]
    try:
        cli.main()
    except SystemExit as left:
        os._exit(left.code if isinstance(left.code, int) else 99)
    finally:
        os._exit(98)


def cell(arguments: list[str], kind: str) -> tuple[int, str]:
    with tempfile.TemporaryFile() as errors:
        process = os.fork()
        if process == 0:
            child(arguments, kind, errors.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        errors.seek(0)
        return code, errors.read().decode(errors="replace")


def main() -> None:
    with open(sys.argv[1]) as file:
        rows = json.load(file)
    found = [[label, kind, *cell(arguments, kind)] for label, kind, arguments in rows]
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
