"""`atlas history`: the gates of a run over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_atlas.ledger.store import DEFAULT_RUNS, Ledger

if TYPE_CHECKING:
    from moe_atlas.ledger.chain import Entry
    from moe_atlas.ledger.history import History
    from moe_atlas.lifecycle.escalation import Reading
    from moe_atlas.report.console.screen import Fitted

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the runs.")]
Receipts = Annotated[
    list[Path] | None,
    typer.Option(
        "--receipts",
        metavar="RECEIPT",
        help="Receipts, or folders of them, that the ledger must account for.",
    ),
]
STYLES = {"GREEN": "green", "YELLOW": "yellow", "RED": "bold red", None: "cyan"}


def history(
    run: Run,
    runs: Runs = DEFAULT_RUNS,
    receipts: Receipts = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the history as an HTML page.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a page that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show a run's baselines and gates with the state of the escalation rule.

    Exits with 0 when the ledger is intact, whatever it says, and 5 when it is not; atlas gate answers for the
    run.

    Example: atlas history sft-640
    """
    from moe_atlas.ledger.history import read_history
    from moe_atlas.receipt.files import require_apart, require_free
    from moe_atlas.text import shown

    if output is not None:
        require_free(output, force)
        require_apart([output], [Ledger(run, runs).path, *(receipts or ())])
    found = read_history(Ledger(run, runs), receipts or ())
    if output is not None:
        _write(found, output)
    if as_json:
        typer.echo(json.dumps(found.describe(), indent=2))
    else:
        _draw(found)
    if output is not None and not as_json:
        typer.echo(f"wrote {shown(str(output))}")
    return 0


def _write(found: History, path: Path) -> None:
    from moe_atlas.report.formats.destinations import writing
    from moe_atlas.report.html import history_page
    from moe_atlas.system.atomic_write import write_atomic

    page = history_page(found)
    with writing(path):
        write_atomic(path, page.encode("utf-8"))


def _draw(found: History) -> None:
    from rich.text import Text

    from moe_atlas.report.console.screen import screen
    from moe_atlas.text import shown
    from moe_atlas.verdict.qualifications import in_words

    console = screen()
    console.print(_table(found))
    if found.snapshot.torn:
        console.print(
            f"an append of {len(found.snapshot.torn)} bytes was cut short and never acknowledged",
            style="yellow",
        )
    last = found.last
    if last is None:
        console.print("no baseline and no audit yet")
        return
    state = in_words(f"{last.colour or 'WAITING'}: {last.state}", found.qualified)
    head = Text(state, style=STYLES[last.colour])
    console.print(head)
    for name, text in (("do", last.action), ("means", last.meaning), ("object", last.pattern)):
        console.print(f"{name + ':':<8}{shown(text, 300)}")
    console.print(f"{'try:':<8}{shown(last.intervention, 300)}")
    if last.margin_trap:
        console.print("margin trap: set margins rise while occupancy is degraded; that is no sign of health")
    count = found.witnesses
    console.print(
        f"ledger: {len(found.snapshot.entries)} entries, {count} receipts agree, head {found.snapshot.head.hash[:16]}…"
    )


def _table(found: History) -> Fitted:
    from rich.table import Table

    from moe_atlas.report.console.screen import Fitted
    from moe_atlas.text import shown

    table = Table(title=f"run {found.snapshot.run}", title_justify="left", box=None)
    for name in ("#", "time", "what", "step", "verdict", "gate"):
        table.add_column(name)
    for name in ("C2", "dead", "CV", "min H", "State1", "NLL", "PPL/100"):
        table.add_column(name, justify="right")
    table.add_column("note", max_width=24)
    for entry in found.snapshot.entries:
        reading = found.readings.get(entry.seq)
        notes = shown(", ".join(found.notes(entry)), 200)
        row = _event(entry, notes) if reading is None else _gate(entry, reading, notes)
        table.add_row(*row, style=STYLES[reading.colour] if reading and reading.colour else None)
    return Fitted(table, ("PPL/100", "min H", "State1", "CV", "NLL", "C2", "dead", "time", "note"))


def _event(entry: Entry, notes: str) -> list[str]:
    """Add a row for a registration or a repair, which is no gate but part of the history."""
    return [str(entry.seq), _minute(entry.time), entry.kind, *[""] * 10, notes]


def _gate(entry: Entry, reading: Reading, notes: str) -> list[str]:
    from moe_atlas.ledger.history import qualified
    from moe_atlas.text import number
    from moe_atlas.verdict.qualifications import marked

    gate = reading.gate
    colour = f"{reading.colour or '–'} {reading.state}"
    figures = (gate.overlap, gate.dead_experts, gate.load_cv, gate.min_entropy, gate.set_margin, gate.nll)
    decline = "–" if reading.decline is None else f"{reading.decline:+.1%}"
    step = "–" if gate.step is None else str(gate.step)
    verdict = marked(gate.verdict or "–", qualified(entry))
    start = [str(entry.seq), _minute(entry.time), entry.kind, step, verdict, colour]
    return [*start, *(number(value) for value in figures), decline, notes]


def _minute(time: str) -> str:
    """Return an ISO time to the minute."""
    return time[:16].replace("T", " ")
