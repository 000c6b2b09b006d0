"""A look in a terminal: sentences, damage, drift against the yardstick, weights, documents, the commands that gate."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moe_atlas.channels import CHANNEL, DISTANCES, Channel
from moe_atlas.report import figures, words
from moe_atlas.report.causes import causes
from moe_atlas.report.console.screen import Fitted
from moe_atlas.report.look.sentences import identical, opening, weights
from moe_atlas.report.yardstick import copies
from moe_atlas.text import interval, number, shown
from moe_atlas.views.measured import LayerView
from moe_atlas.views.receipt import LookView, ReceiptView
from moe_atlas.views.yardstick import CopiedDomain

TITLE = "A LOOK, NOT A VERDICT"
LAYERS_SHOWN = 8
OWN = ("nothing-tuned",)
"""Codes of warnings that the screen says in its own words."""

ROOM = 78  # columns that every terminal has


def render(receipt: ReceiptView, console: Console) -> None:
    """Print a look."""
    console.print(Group(*sections(receipt)))


def sections(receipt: ReceiptView) -> Iterator[RenderableType]:
    """Yield the parts of the screen in reading order."""
    title = Text(f" {TITLE} ", style="bold cyan reverse")
    yield title.append(f"  {words.names(receipt)}", style="default")
    for sentence in opening(receipt):
        yield _indented(Text(sentence, style="bold"))
    for sentence in causes(receipt):
        yield _indented(Text(f"differs beside the training: {sentence}"))
    for warning in receipt.warnings:
        if warning.code not in OWN:
            yield _indented(Text(shown(warning.message, 300), style="yellow"))
    yield domain_table(receipt)
    if not identical(receipt):
        yield layer_table(receipt)
        yield Text(f"weights that changed: {weights(receipt)}")
    if receipt.look is not None:
        yield from _documents(receipt.look)
        yield from _end(receipt, receipt.look)


def _indented(text: Text) -> Padding:
    return Padding.indent(text, 2)


def domain_table(receipt: ReceiptView) -> Fitted:
    """Return the loss of each domain before and after, and that of the base's 4-bit copy."""
    table = Table(title=f"Damage (loss in {figures.unit(receipt)})", title_justify="left", expand=False)
    beside = {row.name: row for row in receipt.yardstick.domains} if receipt.yardstick else {}
    last = ["a 4-bit copy"] if beside else []
    for column in ("domain", "documents", "base", "tuned", "increase", "KL", *last):
        table.add_column(column, justify="left" if column == "domain" else "right", no_wrap=True)
    for row in receipt.domains:
        table.add_row(
            Text(shown(row.name)),
            str(row.documents),
            number(words.estimate(row.nll_base), 4),
            number(words.estimate(row.nll_tuned), 4),
            words.spelled(row.nll_increase),
            number(words.estimate(row.kl)),
            *([_of_copy(beside.get(row.name))] if beside else []),
        )
    return Fitted(table, ("KL", "documents"))


def _of_copy(row: CopiedDomain | None) -> str:
    found = row and row.interval("nll_increase")
    return interval(found and found.facts)


def layer_table(receipt: ReceiptView) -> Fitted:
    """Return the drift of the layers that moved most, each number as a multiple of what a 4-bit copy does there."""
    layers = sorted(receipt.layers, key=lambda layer: -_most(layer))
    said = " (×: of a 4-bit copy's)" if receipt.yardstick else ""
    table = Table(title=f"Drift, worst layers first{said}", title_justify="left", expand=False)
    table.add_column("layer", justify="right")
    for channel in DISTANCES:
        table.add_column(channel.short, justify="right", no_wrap=True)
    for layer in layers[:LAYERS_SHOWN]:
        table.add_row(str(layer.layer), *(_drift(layer, channel) for channel in DISTANCES))
    if len(layers) > LAYERS_SHOWN:
        table.caption = f"{len(layers) - LAYERS_SHOWN} more layers in the receipt"
    return Fitted(table, (CHANNEL["transition_drift"].short, CHANNEL["expert_content"].short))


def _most(layer: LayerView) -> float:
    return max((words.estimate(layer.channel(one.key)) or 0.0) / one.range[1] for one in DISTANCES)


def _drift(layer: LayerView, channel: Channel) -> str:
    """Return a drift, and how many times it is the copy's."""
    found = layer.channel(channel.key)
    return f"{number(words.estimate(found))}{copies(found)}"


def _documents(look: LookView) -> Iterator[RenderableType]:
    """Yield the documents whose loss rose most, by name."""
    if not look.worst_documents:
        return
    table = Table(title="Documents that lost most", title_justify="left", expand=False)
    for column in ("document", "domain", "base", "tuned", "increase"):
        table.add_column(column, justify="left" if column in ("document", "domain") else "right")
    for row in look.worst_documents:
        losses = [number(loss) for loss in (row.nll_base, row.nll_tuned, row.nll_increase)]
        table.add_row(Text(shown(row.document)), Text(shown(row.domain)), *losses)
    yield table


def _end(receipt: ReceiptView, look: LookView) -> Iterator[RenderableType]:
    """Yield on what the look rests, and the commands that would gate the pair."""
    digest = receipt.probe.lock.content_sha256 if receipt.probe.lock else None
    how = look.how if digest is None else f"{look.how}; sha256 {digest[:16]}…"
    yield Text(f"{words.sample(receipt)} of {shown(look.source)} ({how})", style="dim")
    base, tuned = (shown(receipt.checkpoint(side).stored_at or "–") for side in ("base", "tuned"))
    yield Text("A look judges nothing. To gate this pair on documents of your own (NAME=PATH):")
    tokenizer = " --tokenizer bytes" if receipt.probe.tokenizer.kind == "bytes" else ""
    yield _command("atlas init", f"--base {base}", f"--tuned {tuned}", f"--data NAME=PATH{tokenizer}")
    yield _command("atlas register probes.yaml")
    yield _command("atlas audit", base, tuned, "--probe probes.yaml")


def _command(*parts: str) -> Text:
    """Return a command to copy: in one line if a terminal has room for it, else in lines that a shell joins."""
    line = "  " + " ".join(parts)
    return Text(line if len(line) <= ROOM else "  " + " \\\n    ".join(parts))
