"""Options that several commands share, and the output of results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_atlas import options as how
from moe_atlas.cli.common.place import leads
from moe_atlas.errors import AtlasError, UsageError
from moe_atlas.receipt.files import own_paths
from moe_atlas.report.formats.interface import FormatName
from moe_atlas.text import shown
from moe_atlas.views.receipt import LOOK

if TYPE_CHECKING:
    from moe_atlas.report.formats.outputs import Outputs
    from moe_atlas.results import Receipt as Result

_CHECKPOINT = "folder, HF snapshot or .safetensors file"
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=f"The checkpoint: {_CHECKPOINT}.")]
Base = Annotated[Path, typer.Argument(metavar="BASE", help=f"Base checkpoint: {_CHECKPOINT}.")]
Tuned = Annotated[Path, typer.Argument(metavar="TUNED", help="Tuned checkpoint, or an adapter of BASE.")]
Receipt = Annotated[
    Path, typer.Argument(metavar="RECEIPT", help="The receipt; its window data stand beside it.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")]

Probe = Annotated[Path, typer.Option("--probe", metavar="FILE", help="Registered probe file.")]
ChangesFrom = Annotated[
    Path | None,
    typer.Option(
        "--changes-from",
        metavar="RECEIPT",
        help="Receipt whose changes of loss say what this probe can decide: of a pair, or a baseline with a yardstick.",
    ),
]
PolicyFrom = Annotated[
    Path | None,
    typer.Option("--policy-from", metavar="FILE", help="Central policy file that governs the probe file."),
]
ReceiptPath = Annotated[Path, typer.Option("--receipt", metavar="FILE", help="Where the receipt goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing receipt.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Keep state; continue an interrupted run from it."),
]
Dtype = Annotated[how.Dtype, typer.Option(help="matrix products in; auto is the checkpoint's own.")]
Router = Annotated[how.Router, typer.Option(help="routing in; native rounds as a server does.")]
Device = Annotated[how.Device, typer.Option(help="where to compute.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="INTEGER", help="CPU threads; recorded, bits depend on it.")
]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory to use, such as 2GiB.")]
Tokens = Annotated[bool, typer.Option("--tokens", help="For atlas explain: keep what changed at each token.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors; the exit code tells.")]

Run = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="Record the result in this run's ledger.")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder that holds the runs.")]
Step = Annotated[
    int | None,
    typer.Option(min=0, metavar="INTEGER", help="Training step, for the history."),
]

_FORMATS = " or ".join(", ".join(FormatName).rsplit(", ", 1))
Format = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="KIND=FILE",
        help=f"{_FORMATS}, with a file: junit=atlas.xml; repeatable.",
    ),
]
Github = Annotated[bool, typer.Option("--github", help="Tell GitHub Actions: summary, outputs, annotation.")]

Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-config-key",
        metavar="K=V",
        help="Accept a config.json key that nothing reads.",
    ),
]

NoiseFloor = Annotated[
    how.Execution | None,
    typer.Option(help="the base against itself."),
]

Yardstick = Annotated[
    bool,
    typer.Option("--yardstick", help="Measure a 4-bit copy of the base, too."),
]

AdapterAs = Annotated[how.AdapterAs, typer.Option(help="an adapter's sums.")]
AdapterLayout = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYOUT",
        help="How an adapter's experts are packed; repeatable.",
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="BASE",
        help="Base of an adapter or of a training checkpoint.",
    ),
]


def layouts(given: list[str] | None) -> tuple[how.AdapterLayout, ...]:
    """Return the readings of an adapter that were chosen, at most one of each pair.

    Raises:
        UsageError: E_ADAPTER.
    """
    chosen = tuple(given or ())
    pairs = (how.ADAPTER_PACKINGS, how.ADAPTER_SIDES)
    for one in chosen:
        pair = next((names for names in pairs if one in names), ())
        if len([other for other in chosen if other in pair]) != 1:
            expected = " and ".join(" or ".join(names) for names in pairs)
            problem = f"expected {expected}, each once, found {shown(' '.join(chosen))}"
            raise UsageError("E_ADAPTER", "--adapter-layout", problem, "give one of each pair at most")
    return chosen  # type: ignore[return-value]


def audit_options(given: how.AuditOptions, memory: str | None, accept: list[str] | None) -> how.AuditOptions:
    """Return the given options together with those that the command line spells as text.

    Raises:
        UsageError: E_SIZE or E_ACCEPT.
    """
    from moe_atlas.configuration.accepting import parse_accepted
    from moe_atlas.text import parse_size

    size = None if memory is None else parse_size(memory)
    return replace(given, memory=size, accepted=parse_accepted(accept or ()))


def reports(
    formats: list[str] | None,
    *,
    as_json: bool,
    github: bool,
    force: bool,
    receipt: Path,
    inputs: Sequence[Path | None],
) -> Outputs:
    """Return the requested reports of an audit or a baseline, checked before the work; none on secondary processes.

    Raises:
        UsageError: E_FORMAT, E_EXISTS, E_NO_FOLDER, E_OVER_INPUT or E_GITHUB.
    """
    from moe_atlas.report.formats.outputs import outputs

    if not leads():
        return outputs(())
    names = [*(formats or ()), *(["json"] if as_json else [])]
    reserved = own_paths(receipt)
    return outputs(names, github_actions=github, force=force, reserved=reserved, inputs=inputs)


@contextlib.contextmanager
def reporting(wanted: Outputs) -> Iterator[None]:
    """Write reports that say why there is no receipt, in the requested formats, and raise the error again."""
    try:
        yield
    except AtlasError as error:
        with contextlib.suppress(AtlasError):
            wanted.write_error(error)
        raise


def emit(result: Result, wanted: Outputs, *, quiet: bool) -> int:
    """Show a result, write its reports and return its exit code, which a closed output pipe does not change."""
    written = wanted.write(result.body, result.path)
    if not quiet and not wanted.on_stdout:
        with contextlib.suppress(OSError, SystemExit):  # rich leaves with 1 when its reader has left
            draw(result.body, result.path, written)
    return result.exit_code


def draw(receipt: dict[str, Any], path: Path, written: list[Path]) -> None:
    """Print the terminal report and the paths of the written files."""
    from moe_atlas.report import terminal
    from moe_atlas.report.console.screen import screen
    from moe_atlas.report.look import screen as look
    from moe_atlas.report.opening import opened

    render = look.render if receipt["kind"] == LOOK else terminal.render
    console = screen()
    render(opened(receipt, path), console)
    digest = receipt["evidence"]["receipt_sha256"][:16]
    reports = "".join(f"; report: {shown(str(report))}" for report in written)
    name = shown(str(path))
    console.print(
        f"receipt: {name} (sha256 {digest}…), windows beside it{reports}; check it with: atlas verify {name}"
    )
