"""Warnings about weights that changed unlike others of their kind, and about weights that no probe token reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_atlas.checkpoint.config_keys import SECTIONS
from moe_atlas.verdict.gates.unreached_weights import Kind, limit_of, moved, outlying_experts
from moe_atlas.views.measured import LayerView
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.weights import LedgerRow

Warnings = list[dict[str, Any]]

SHOWN = 4
PEERS = 4  # in fewer layers than this, a tensor has too few peers for a comparison
ODD = {"zero": "zero", "nonfinite": "not finite", "far_longer": "over ten times as long as any of the base"}
KINDS: dict[Kind, str] = {"experts": "expert", "router_rows": "router row"}


def unseen_warnings(receipt: ReceiptView) -> Warnings:
    """Return the warnings about weights outside the probe's reach, from the weights ledger and the occupancy."""
    layers = [layer for layer in receipt.layers if layer.pair and layer.changes]
    rows = [*_rows(receipt), *_lone_rows(receipt), *_stored_rows(receipt)]
    return [*_unreached(layers), *_outliers(receipt, layers), *rows]


def _unreached(layers: Sequence[LayerView]) -> Warnings:
    found = {layer.layer: _of_no_token(layer) for layer in layers}
    count = sum(map(len, found.values()))
    if not count:
        return []
    changes = [layer.changes_of("experts")[e] for layer in layers for e in found[layer.layer]]
    places = [f"layer {layer}: {_some(experts)}" for layer, experts in found.items() if experts]
    noun = "1 expert was" if count == 1 else f"{count} experts were"
    message = f"{noun} reached by no probe token and changed by {_span(changes)} ({_some(places, '; ')})"
    return [{"code": "unreached-experts", "message": message}]


def _of_no_token(layer: LayerView) -> tuple[int, ...]:
    coverage = layer.pair and layer.pair.expert_coverage
    return coverage.unreached if coverage else ()


def _span(changes: Sequence[float | None]) -> str:
    known = sorted(change for change in changes if change is not None)
    if len(known) < len(changes) or not known:
        return moved(None)
    if known[-1] == 0.0:
        return "nothing"
    return moved(known[-1]) if len(known) == 1 else f"{known[0]:.3g} to {known[-1]:.3g} of the norm"


def _outliers(receipt: ReceiptView, layers: Sequence[LayerView]) -> Warnings:
    found = sorted([*_experts(layers), *_tensors(receipt)], key=lambda entry: -entry[0])
    if not found:
        return []
    message = (
        f"weights changed far more than others of their kind: {_some([said for _, said in found], '; ')}"
    )
    return [{"code": "weight-outliers", "message": message}]


def _experts(layers: Sequence[LayerView]) -> Iterator[tuple[float, str]]:
    for layer in layers:
        for kind, name in KINDS.items():
            changes = layer.changes_of(kind)
            for number in outlying_experts(layer, kind, range(len(changes))):
                change = changes[number]
                order = float("inf") if change is None else change
                yield order, f"layer {layer.layer} {name} {number} by {moved(change)}"


def _tensors(receipt: ReceiptView) -> Iterator[tuple[float, str]]:
    """Compare each tensor that every layer has (norms, shared experts, attention) with those of the other layers."""
    kinds: dict[tuple[str, str], list[tuple[float, LedgerRow]]] = {}
    for row in (receipt.weights and receipt.weights.tensors) or ():
        change = row.relative_change
        if row.layer is not None and row.kind != "routed_expert" and change is not None:
            name = row.name.replace(f".{row.layer}.", ".*.", 1)
            kinds.setdefault((row.kind, name), []).append((change, row))
    for rows in kinds.values():
        limit = limit_of([change for change, _ in rows])
        for change, row in rows if len(rows) >= PEERS else ():
            if change > limit:
                yield change, f"{row.name} by {moved(change)}"


def _rows(receipt: ReceiptView) -> Warnings:
    out = []
    for end, found in (receipt.vocabulary.compared if receipt.vocabulary else {}).items():
        count, unseen = found.outlying.both, found.outlying.unseen
        if not count:
            continue
        named = [row for row in found.named if row.outlying]
        ids = [f"{row.id} ({row.name})" if row.name else str(row.id) for row in named]
        message = (
            f"{count} of {found.rows} rows of the {end} moved far more than the others, {unseen} of them of ids in "
            f"no probe window: {_some(ids)}"
        )
        out.append({"code": "vocabulary-rows", "message": message})
    return out


def _lone_rows(receipt: ReceiptView) -> Warnings:
    """Return the warning about rows of embedding and head that only one checkpoint has."""
    ends = receipt.vocabulary.compared if receipt.vocabulary else {}
    found = {end: rows.extra for end, rows in ends.items() if rows.extra is not None}
    if not found:
        return []
    extra = next(iter(found.values()))
    first, last = extra.first, extra.first + extra.rows - 1
    ids = [f"{row.id} ({row.name})" for row in extra.named if row.name]
    odd = [
        f"; {one.odd[key]} of the {end} are {said}"
        for key, said in ODD.items()
        for end, one in found.items()
        if one.odd[key]
    ]
    named = f", named {_some(ids)}" if ids else ""
    message = (
        f"the {extra.side} checkpoint alone has {extra.rows} rows of {' and '.join(found)}, ids {first} to {last}"
        f"{named}: only ids below {first} are compared{''.join(odd)}"
    )
    return [{"code": "rows-of-one-side", "message": message}]


def _stored_rows(receipt: ReceiptView) -> Warnings:
    """Return a warning for each checkpoint that stores more vocabulary rows than its configuration states.

    A server may cut the further rows, or include them in its softmax.
    """
    out = []
    for side, facts in receipt.checkpoints.items():
        said = _vocab_size(facts.config)
        if said is not None and said < facts.vocabulary:
            message = (
                f"config.json of the {side} checkpoint says vocab_size {said}, its embedding stores "
                f"{facts.vocabulary} rows: all of them count in its softmax here, a loader may refuse or cut them"
            )
            out.append({"code": "rows-beyond-config", "message": message})
    return out


def _vocab_size(config: Mapping[str, str]) -> int | None:
    """Return `vocab_size` from the section of the language model, or from the top level if that section has none."""
    keys = [f"{section}vocab_size" for section in (*SECTIONS, "")]
    found = [config[key] for key in keys if key in config]
    return int(found[0]) if found and found[0].isdecimal() else None


def _some(entries: Sequence[Any], between: str = ", ") -> str:
    more = f"{between}and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return between.join(str(entry) for entry in entries[:SHOWN]) + more
