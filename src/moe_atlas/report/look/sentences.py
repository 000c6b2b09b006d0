"""What a look says in plain sentences: what became of the loss, what is broken, which tensors changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from moe_atlas.channels import CHANNEL, DISTANCES
from moe_atlas.report import figures
from moe_atlas.report.words import grouped
from moe_atlas.text import number, ranges, shown
from moe_atlas.verdict.gates.gate import too_few
from moe_atlas.views.measured import DomainRow, Interval, no_interval
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.weights import Breach, WeightClass

NOTHING = "No difference: both checkpoints hold the same values; change of loss and drift are exactly 0."
COPIED = ("cloned-experts", "expert-identity-lost")
"""Kinds of breaches that the sentence on copies says already: who is overwritten by a copy is lost."""
KINDS = {
    "cloned-experts": "Copied experts",
    "expert-identity-lost": "Lost experts",
    "experts-moved-without-router": "Experts in another order than their router rows",
    "init-like-experts": "Fresh experts",
    "zeroed-experts": "Zeroed experts",
}
LISTED = 8


def identical(receipt: ReceiptView) -> bool:
    """Return whether both checkpoints hold the same values."""
    return receipt.identity is not None and receipt.identity.identical_checkpoints is True


def opening(receipt: ReceiptView) -> Iterator[str]:
    """Yield the sentences that come first: what became of the loss, what is certainly broken, how far it drifted.

    Where the loss did not certainly rise, what is broken comes before it.
    """
    if identical(receipt):
        yield NOTHING
        return
    rose = any(line.gate == "nll_increase" for line in receipt.look.findings) if receipt.look else False
    said = [[loss(receipt)], list(broken(receipt))]
    for sentences in said if rose else reversed(said):
        yield from sentences
    yield from drift(receipt)


class Change(NamedTuple):
    """The change of a domain's loss, and whether there are documents enough to be certain of it."""

    name: str
    found: Interval
    few: str | None

    @property
    def estimate(self) -> float:
        """The change itself; 0 where it is undefined."""
        return self.found.estimate or 0.0

    @property
    def sign(self) -> int:
        """1 where the loss certainly rose, -1 where it certainly fell, else 0."""
        low, high = self.found.low, self.found.high
        if self.few is not None or low is None or high is None:
            return 0
        return int(low > 0.0) - int(high < 0.0)


def loss(receipt: ReceiptView) -> str:
    """Return what became of the loss of every domain, what certainly got worse first."""
    known = [_change(row) for row in receipt.domains]
    known = [change for change in known if change.found.estimate is not None]
    moved = {sign: [change for change in known if change.sign == sign] for sign in (1, -1, 0)}
    said = [
        *_moved(sorted(moved[1], key=lambda change: -change.estimate), "worse", figures.unit(receipt)),
        *_moved(sorted(moved[-1], key=lambda change: change.estimate), "better", figures.unit(receipt)),
        *_unmoved(moved[0], figures.unit(receipt), everything=len(moved[0]) == len(known)),
    ]
    return " ".join(said) or "The loss of no domain is defined: a checkpoint computes NaN or infinity."


def _change(row: DomainRow) -> Change:
    return Change(shown(row.name), row.nll_increase or no_interval(), too_few(row.documents))


def _moved(changes: Sequence[Change], word: str, unit: str) -> list[str]:
    """Say in one sentence that domains got worse or better; the first one has the unit."""
    if not changes:
        return []
    first, *rest = changes
    parts = [f"{first.name} got {number(abs(first.estimate), 2)} {unit} {word} {_range(first)}"]
    parts += [f"{one.name} {number(abs(one.estimate), 2)} {_range(one)}" for one in rest]
    return [f"{_capital(', '.join(parts))}."]


def _range(change: Change) -> str:
    low, high = sorted((abs(change.found.low or 0.0), abs(change.found.high or 0.0)))
    return f"({number(low, 2)} to {number(high, 2)})"


def _unmoved(changes: Sequence[Change], unit: str, *, everything: bool) -> list[str]:
    if not changes:
        return []
    named = ", ".join(f"{one.name} {one.estimate:+.2g}{_why_open(one)}" for one in changes)
    said = (
        f"No domain got certainly worse or better: {named} {unit}."
        if everything
        else f"No certain change: {named}."
    )
    return [said]


def _why_open(change: Change) -> str:
    low, high = change.found.low, change.found.high
    if change.few is not None:
        return f" ({change.few})"
    return "" if low is None or high is None else f" ({low:+.2g} to {high:+.2g})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def broken(receipt: ReceiptView) -> Iterator[str]:
    """Yield a sentence for each kind of finding that is no loss, with its layers and experts by number."""
    copies = _copies(receipt)
    for said, layers in copies.items():
        more = f", and {len(said) - LISTED} more" if len(said) > LISTED else ""
        yield f"Experts are copies of other experts in {_layers(layers)}: {', '.join(said[:LISTED])}{more}."
    explained = {layer for layers in copies.values() for layer in layers}
    breaches = (receipt.identity and receipt.identity.breaches) or ()
    yield from _breaches([row for row in breaches if row.kind not in COPIED or row.layer not in explained])
    found = receipt.look.findings if receipt.look else ()
    for group in grouped(line for line in found if line.gate not in ("identity", "nll_increase")):
        yield f"{_capital(group.sentence)}."


def _copies(receipt: ReceiptView) -> dict[tuple[str, ...], list[int]]:
    """Return which experts of the tuned checkpoint are copies of others, and in which layers these are the copies."""
    together: dict[tuple[str, ...], list[int]] = {}
    for row in (receipt.identity and receipt.identity.layers) or ():
        new = [group for group in row.clones.tuned or () if group not in (row.clones.base or ())]
        said = tuple(f"{', '.join(map(str, group[1:]))} of {group[0]}" for group in new)
        if said:
            together.setdefault(said, []).append(row.layer)
    return together


def _breaches(breaches: Sequence[Breach]) -> Iterator[str]:
    """Yield one sentence a kind: its layers, and what was found in the first of them."""
    kinds: dict[str, list[Breach]] = {}
    for breach in breaches:
        kinds.setdefault(breach.kind, []).append(breach)
    for kind, rows in kinds.items():
        layers = sorted({row.layer for row in rows if row.layer is not None})
        first = f" (layer {layers[0]})" if len(layers) > 1 else ""
        name = KINDS.get(kind, kind.replace("-", " "))
        yield f"{name} in {_layers(layers)}{first}: {shown(rows[0].detail, 160)}."


def drift(receipt: ReceiptView) -> Iterator[str]:
    """Yield the largest drift, as a multiple of what a 4-bit copy of the base does where that was measured."""
    found = max(multiples(receipt), default=None)
    if found is None:
        return
    channel = CHANNEL[found.key]
    where = f"{channel.label} of layer {found.layer}, {number(found.estimate)}, {number(found.times, 2)} × the copy's"
    if found.times <= 1.0:
        yield f"Every drift is within that of a 4-bit copy of the base; nearest to it: {where}."
    else:
        yield f"Largest drift against that of a 4-bit copy of the base: {where}."


class Multiple(NamedTuple):
    """A drift as a multiple of the yardstick's at the same layer."""

    times: float
    layer: int
    key: str
    estimate: float


def multiples(receipt: ReceiptView) -> Iterator[Multiple]:
    """Yield every drift that a 4-bit copy of the base certainly has as well."""
    for layer in receipt.layers:
        for channel in DISTANCES:
            found = layer.channel(channel.key)
            if found and found.estimate is not None and found.times_copy is not None:
                yield Multiple(found.times_copy, layer.layer, channel.key, found.estimate)


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"


def weights(receipt: ReceiptView) -> str:
    """Return how many tensors of each class changed, and by how much; then the classes that did not."""
    found: Mapping[str, WeightClass] = (receipt.weights and receipt.weights.classes) or {}
    classes = {name.replace("_", " "): row for name, row in found.items() if row.tensors}
    changed = [
        f"{name} {row.changed} of {row.tensors}{_share(row)}" for name, row in classes.items() if row.changed
    ]
    alike = [name for name, row in classes.items() if not row.changed]
    same = f"the same values: {', '.join(alike)}" if alike else ""
    return "; ".join(part for part in (", ".join(changed), same) if part)


def _share(row: WeightClass) -> str:
    change = row.relative_change
    if change is None:
        return ""
    return f" ({100 * change:.0f} %)" if change >= 0.1 else f" ({100 * change:.2g} %)"
