"""The command line: parse, call, render, exit code. This module imports no torch; a command imports it when it must."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any, TextIO

import typer

from moe_atlas.cli.common.help import Command
from moe_atlas.cli.common.place import leads
from moe_atlas.errors import AtlasError, Exit, out_of_memory
from moe_atlas.system import interruption
from moe_atlas.system.interruption import Stopped
from moe_atlas.system.parent_process import end_with_parent
from moe_atlas.text import shown
from moe_atlas.version import __version__

# Two caches keep matrix products prepared, one for each count of rows, up to two megabytes each: oneDNN's and that of
# torch's layer above it, 1024 each unless told. A layer has its own counts, so both would grow with depth.
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
PREPARED = 64  # products kept in each: those of a layer whose experts' tokens differ up to eightfold
COMMANDS = {
    "quick": ("checkpoints", "Look at a pair, without configuration and without a verdict."),
    "audit": ("checkpoints", "Compare two checkpoints and write a receipt."),
    "plan": ("checkpoints", "Say what an audit would read, hold and take."),
    "baseline": ("checkpoints", "Record the state of one checkpoint."),
    "register": ("probes", "Bind a probe file in a lock, before the run."),
    "init": ("probes", "Write a commented probe file to edit."),
    "inspect": ("checkpoints", "Show what a checkpoint is and what would be replayed."),
    "families": ("checkpoints", "List the families and stored formats that can be read."),
    "verify": ("receipts", "Derive every number and the verdict of a receipt again."),
    "report": ("receipts", "Explain a receipt: terminal, HTML, Markdown, JUnit, JSON."),
    "explain": ("receipts", "Show which documents and tokens a pair lost on."),
    "diff": ("receipts", "Show what moved between two receipts."),
    "history": ("runs", "Show a run's baselines and gates."),
    "gate": ("runs", "Answer for a run with an exit code."),
    "calibrate": ("probes", "Set budgets from pairs whose fate is known."),
    "falsify": ("receipts", "Hold the method against simpler measures, over many pairs."),
    "attest": ("receipts", "Wrap a verified receipt as an in-toto Statement."),
}
"""Every command, with its package and its line in `atlas --help`."""

CRASHED = 70
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# Click's own base error: newer typers carry click inside, so it is reached through what typer exports.
CommandLineError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="atlas",
    help="Audit a pair of Mixture-of-Experts checkpoints: is the tuned one still the same routed object?",
    epilog="Example: atlas audit base.ckpt tuned.ckpt --probe probes.yaml",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    """Return the version of the program, and of the rules by which it derives a receipt."""
    if wanted:
        from moe_atlas.derivation.derive import DERIVATION

        typer.echo(f"atlas {__version__} (derivation {DERIVATION})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _atlas(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> int | None:
    """Without a command, show what there is; like any incomplete command line, that ends in the usage code."""
    if context.invoked_subcommand is not None:
        return None
    typer.echo(context.get_help(), err=True)
    return int(Exit.USAGE)


for _name, (_room, _line) in COMMANDS.items():
    _command = getattr(import_module(f"moe_atlas.cli.{_room}.{_name}"), _name)
    app.command(_name, cls=Command, short_help=_line)(_command)


def main() -> None:
    """Run the command line and leave with an exit code that never lies.

    Of several processes that share an audit only the first one speaks; all leave with its code.
    130 and 143 after SIGINT and SIGTERM; 70, with a traceback, for a bug of ours, so that it reads as no verdict.
    """
    sys.excepthook = _crash
    for cache in CACHES:
        os.environ.setdefault(cache, str(PREPARED))
    # Threads that wait for others by spinning take the processor from those that read, hash and compare.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.stdout, sys.stderr = _open(sys.stdout if leads() else None), _open(sys.stderr if leads() else None)
    try:
        interruption.listen()
        end_with_parent()
        code = run(sys.argv[1:])
    except Stopped as stop:  # it came while an error was being said
        complain(interruption.LINE)
        code = 128 + stop.number
    interruption.ignore()
    if not all([_flushes(sys.stdout), _flushes(sys.stderr)]):
        os._exit(code)
    sys.exit(code)


def _open(stream: TextIO | None) -> TextIO:
    """Return a stream that can be written to; the interpreter sets None for a closed descriptor.

    A character that a pipeline's encoding does not have is escaped: words about a result must not change its code.
    """
    if stream is None:
        return open(os.devnull, "w")  # noqa: SIM115  open until the process ends
    if isinstance(stream, TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")
    return stream


def _crash(*error: Any) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr = sys.__stderr__ or sys.stderr
        sys.__excepthook__(*error)
        sys.stderr.flush()
    os._exit(CRASHED)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; every error that a user can cause becomes one line."""
    try:
        result: Any = typer.main.get_command(app).main(arguments, prog_name="atlas", standalone_mode=False)
    except AtlasError as error:
        for line in error.lines():  # a probe file's errors are said all at once
            complain(line)
        return int(error.exit_code)
    except CommandLineError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "atlas"
        problem = error.format_message().replace("Value error, ", "").rstrip(".")
        complain(f"E_USAGE {problem}; {command} --help shows what there is")
        return int(Exit.USAGE)
    except (Stopped, typer.Abort, KeyboardInterrupt) as stop:
        complain(interruption.LINE)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except (
        SystemExit
    ):  # how click answers a reader of our output that left: with 1, which would read as a FAIL
        return int(Exit.EXHAUSTED)
    except Exception as error:
        if not out_of_memory(error):
            return _unwritable(error)
        complain("E_MEMORY atlas: an allocation failed; free some memory, or run it where there is more")
        return int(Exit.EXHAUSTED)
    return result if isinstance(result, int) else int(Exit.PASS)


def _unwritable(error: Exception) -> int:
    """Return the exit code of a failed write to an output stream; any other error is a bug and is raised again."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
        complain(f"E_OUTPUT standard output: cannot be written ({error.strerror})")
        return int(Exit.EXHAUSTED)
    raise error


def complain(message: str) -> None:
    """Write one line, inert in a terminal, to standard error; ignore a closed stream."""
    with contextlib.suppress(OSError, ValueError):
        print(f"atlas: {shown(message, 2000)}", file=sys.stderr, flush=True)


def _flushes(stream: TextIO) -> bool:
    """Return whether a stream can be flushed; otherwise the interpreter would replace the exit code by 120."""
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError):  # AttributeError: a process without a console has no stream
        return False
    return True
