"""An explanation in a terminal: sentences, the worst documents and their text, categories, flows."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from moe_atlas.explanation.documents import DomainDamage
from moe_atlas.explanation.explain import Explanation
from moe_atlas.explanation.passages import Passage, Shaded, level
from moe_atlas.explanation.sentences import NO_INTERVALS, TEXT_INSIDE, percent, signed, summary, worst_pieces
from moe_atlas.explanation.text import visible, without_commands
from moe_atlas.report import words
from moe_atlas.text import number, shown

LENGTH = 160  # tokens of a passage
SHOWN = 1  # passages of a domain
LAYERS = 12
BARS = " ▁▂▃▄▅▆▇█"
BINS = 24
MARGIN = "│ "  # no line of a document's text starts a line: a pipeline's log obeys some
SHADES = {
    **{1: "black on #ffe0cc", 2: "black on #ffc299", 3: "black on #ff944d", 4: "black on #e65c00"},
    **{-1: "black on #d6e9f8", -2: "black on #a9d0f0", -3: "black on #6db3e6", -4: "black on #2f8fd1"},
}


def render(explanation: Explanation, console: Console) -> None:
    """Print an explanation."""
    for part in sections(explanation, console):
        console.print(part)


def sections(explanation: Explanation, console: Console) -> Iterator[RenderableType]:
    """Yield the parts of an explanation, in reading order."""
    yield Text(f"{shown(str(explanation.path))}: {words.names(explanation.receipt)}", style="bold")
    for sentence in summary(explanation):
        yield Text(f"  {sentence}")
    for domain in explanation.domains:
        if domain.documents and not domain.unchanged:
            yield heading(
                f"{shown(domain.name)} ({domain.role}), change of loss by document: {histogram(domain)}"
            )
            yield document_table(domain, explanation.worst)
    shown_passages = [p for found in explanation.passages.values() for p in found[:SHOWN]]
    if shown_passages:
        yield Text(f"\n{TEXT_INSIDE}", style="bold")
        yield Text(legend(explanation), style="dim")
    for passage in shown_passages:
        yield from passage_lines(passage, explanation, console)
    if explanation.has_tokens and not all(domain.unchanged for domain in explanation.domains):
        yield heading("By kind of token, base domains (share: of all loss that tokens of the domain gained)")
        yield category_table(explanation)
    if any(layer.replaced for layer in explanation.flows):
        yield heading("Which experts took over whose tokens, base domains (* protected layer)")
        yield flow_table(explanation)
    yield Text(NO_INTERVALS, style="dim")


def heading(text: str) -> Text:
    """Return the heading of a table, which is not wrapped at the table's width."""
    return Text(f"\n{text}", style="italic")


def document_table(domain: DomainDamage, most: int) -> Table:
    """Return the worst documents of a domain."""
    table = Table(expand=False)
    table.add_column("worst documents", overflow="fold")
    for column in ("base", "tuned", "change", "routes replaced"):
        table.add_column(column, justify="right", no_wrap=True)
    for document in domain.worse[:most]:
        replaced = "–" if document.replaced is None else percent(document.replaced)
        losses = (number(document.base), number(document.tuned), signed(document.increase))
        table.add_row(Text(shown(document.name)), *losses, replaced)
    if not domain.worse:
        table.add_row("none got worse", "", "", "", "")
    return table


def histogram(domain: DomainDamage) -> str:
    """Return the distribution of the documents' finite changes in one line."""
    if not domain.quantiles:
        return "no document has a finite change"
    low, high = domain.quantiles[0], domain.quantiles[-1]
    counts = [0] * BINS
    for document in domain.documents:
        if low <= document.increase <= high:
            place = (document.increase - low) / (high - low) if high > low else 0.0
            counts[min(BINS - 1, int(place * BINS))] += 1
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // max(counts))] for count in counts)
    return f"{signed(low)} {bars} {signed(high)}"


def legend(explanation: Explanation) -> str:
    """Return what shades and lines of a passage mean."""
    if not explanation.has_tokens:
        return "The text is not shaded: there are no token data."
    layers = len(explanation.flows)
    return (
        f"Orange: predicting the token got harder, blue: easier; darkest from {number(explanation.darkest)} nats. "
        f"Underlined: the token's routed set changed in at least half of the {layers} layers."
    )


def passage_lines(passage: Passage, explanation: Explanation, console: Console) -> Iterator[Text]:
    """Yield the lines of one passage, each behind a margin."""
    part = f", window {passage.window} of {passage.windows}" if passage.windows > 1 else ""
    first = f", from token {passage.first + 1}" if passage.first else ""
    yield Text(f"\n{shown(passage.document)}{part}{first}", style="bold")
    text = Text()
    shown_texts = without_commands(visible(piece.text) for piece in passage.pieces)
    for piece, safe in zip(passage.pieces, shown_texts, strict=True):
        text.append(safe, style=style(piece, explanation))
    for line in text.wrap(console, console.width - len(MARGIN)):
        yield Text(MARGIN, style="dim") + line
    if named := worst_pieces(passage):
        yield Text(f"  {named}", style="dim")


def style(piece: Shaded, explanation: Explanation) -> str:
    """Return the style of one piece of a passage."""
    found = SHADES.get(level(piece.increase, explanation.darkest), "")
    moved = piece.moved is not None and 2 * piece.moved >= max(1, len(explanation.flows))
    return f"{found} underline".strip() if moved and piece.moved else found


def category_table(explanation: Explanation) -> Table:
    """Return the changes by kind of token in base domains."""
    base = {domain.name for domain in explanation.domains if domain.role == "base"}
    table = Table(expand=False)
    for column in ("domain", "kind of token"):
        table.add_column(column, overflow="fold")
    for column in ("tokens", "base", "change", "share", "layers with other routes"):
        table.add_column(column, justify="right")
    for domain, found in explanation.categories.items():
        grouping = ""
        for one in found if domain in base else ():
            if one.grouping != grouping:
                table.add_section()
            name = f"{shown(domain)}" if one.grouping != grouping else ""
            grouping = one.grouping
            share = "–" if one.share is None else percent(one.share)
            losses = (number(one.base), signed(one.increase))
            table.add_row(Text(name), one.name, str(one.tokens), *losses, share, percent(one.moved))
    return table


def flow_table(explanation: Explanation) -> Table:
    """Return the largest flows of the layers that changed most."""
    layers = sorted(explanation.flows, key=lambda layer: -layer.replaced)[:LAYERS]
    table = Table(expand=False)
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("tokens rerouted", justify="right")
    table.add_column(
        "largest flows: expert → expert, tokens that moved of those that the base routes there",
        overflow="fold",
    )
    for layer in sorted(layers, key=lambda layer: layer.layer):
        named = ", ".join(f"{f.lost} → {f.gained}: {f.tokens} of {f.of}" for f in layer.largest[:3])
        table.add_row(
            f"{layer.layer}{'*' if layer.protected else ' '}", percent(layer.changed), named or "none"
        )
    if len(explanation.flows) > len(layers):
        table.caption = f"{len(explanation.flows) - len(layers)} layers that changed less are on the page"
    return table
