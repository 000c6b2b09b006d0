"""Warnings about stored tensors, files and settings that no channel measures. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from moe_atlas.checkpoint.config_keys import OTHER, SERVED
from moe_atlas.checkpoint.side_files import QUIET, WEIGHTS
from moe_atlas.checkpoint.side_files import SERVED as SERVED_FILES
from moe_atlas.derivation.differences import uncovered
from moe_atlas.text import shown
from moe_atlas.verdict.gates.unreplayed_parts import finding
from moe_atlas.views.receipt import ReceiptView

CHARACTERS = 170  # most characters of the items in one message
MESSAGES = 4  # most messages of one kind that name items
PARTS = {
    "mtp": "multi-token prediction",
    "modalities": "vision and audio",
    "activation_scales": "scales of quantised activations",
    "derived": "tensors that follow from the configuration",
    "idle": "matrices of identity experts",
}


def unmeasured(receipt: ReceiptView) -> Iterator[dict[str, str]]:
    """Yield the warnings, those about things that a server acts on first."""
    yield from _tokens(receipt)
    yield from _unreplayed(receipt)
    yield from _weights_beside(receipt)
    yield from _folder(receipt)


def _warning(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def _tokens(receipt: ReceiptView) -> Iterator[dict[str, str]]:
    """Yield warnings about tokenizers that differ or were not compared, and about losses worse than guessing."""
    for side, facts in receipt.checkpoints.items():
        held = facts.tokenizer
        if held.result == "other-ids":
            yield _warning("tokenizer-differs", f"the tokenizer beside the {side} checkpoint {held.reason}")
        if held.result == "not-compared" and receipt.probe.tokenizer.kind == "file":
            words = f"the registered tokenizer was not held against that of the {side} checkpoint"
            yield _warning("tokenizer-not-compared", f"{words}: {held.reason}")
        yield from _losses(receipt, side, facts.vocabulary)


def _losses(receipt: ReceiptView, side: str, vocabulary: int) -> Iterator[dict[str, str]]:
    guessing = math.log(vocabulary)
    losses = {row.name: row.nll_base if side == "base" else row.nll_tuned for row in receipt.domains}
    known = {name: loss.estimate for name, loss in losses.items() if loss is not None}
    above = [f"{name} {loss:.4g}" for name, loss in known.items() if loss is not None and loss > guessing]
    words = (
        f"the {side} checkpoint loses more than guessing would, ln({vocabulary}) = {guessing:.4g} nats per token; is "
        "the probe numbered by the model's own tokenizer? NLL"
    )
    yield from _listed("worse-than-guessing", words, above)


def _unreplayed(receipt: ReceiptView) -> Iterator[dict[str, str]]:
    for row in (receipt.weights and receipt.weights.unreplayed) or ():
        found = finding(row)
        if found is not None:
            first = f", first {shown(row.named[0].tensor)}" if row.named else ""
            part = PARTS.get(row.name, shown(row.name))
            yield _warning("unreplayed", f"{part}, which no probe token passes: {found}{first}")


def _weights_beside(receipt: ReceiptView) -> Iterator[dict[str, str]]:
    """Yield warnings about weights and unread files that a loader might use, with the audited ones or instead."""
    for side, facts in receipt.checkpoints.items():
        rows = uncovered(facts.files)
        weights = [row.file for row in rows if row.kind == WEIGHTS]
        others = [row.file for row in rows if row.kind != WEIGHTS]
        words = f"beside the {side} checkpoint stand"
        yield from _listed(
            "weights-beside", f"{words} weights that nothing read and a loader might take", weights
        )
        yield from _listed("unread-files", f"{words} files that were not read", others)


def _folder(receipt: ReceiptView) -> Iterator[dict[str, str]]:
    """Yield warnings about files and keys that differ: first those that a server acts on, then the others."""
    files = [row for row in receipt.differences.files if row.kind not in (WEIGHTS, *QUIET)]
    for served in (True, False):
        changed = [f"{row.file} {row.change}" for row in files if (row.kind in SERVED_FILES) is served]
        keys = [row for row in receipt.differences.config if row.rank == (SERVED if served else OTHER)]
        moved = [f"{shown(row.key, 60)} {_side(row.base)} → {_side(row.tuned)}" for row in keys]
        code, words = (
            ("server", "that a server acts on") if served else ("other", "that no known server acts on")
        )
        yield from _listed(f"{code}-files", f"files {words} differ", changed)
        yield from _listed(f"{code}-config", f"keys of config.json {words} differ", moved)


def _side(value: str | None) -> str:
    return "absent" if value is None else shown(value, 60)


def _listed(code: str, words: str, items: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield warnings that name the items. Each is so short that no report cuts it; the receipt lists all items."""
    items = [shown(item, 150) for item in items]
    for _ in range(MESSAGES):
        taken = 1
        while taken < len(items) and sum(map(len, items[: taken + 1])) + 2 * taken <= CHARACTERS:
            taken += 1
        if items:
            yield _warning(code, f"{words}: {', '.join(items[:taken])}")
        items = items[taken:]
    if items:
        yield _warning(
            code, f"{words}: {len(items)} more, listed in the receipt under differences and checkpoints"
        )
