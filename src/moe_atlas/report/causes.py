"""What two checkpoints differ in beside what was trained, in words: the likely cause of a drift in every layer.

The facts are under ``method.differences``: settings that the replay computes with, and classes of tensors that the
tuned checkpoint stores in a format that cannot hold all of the base's values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_atlas.text import ranges, shown
from moe_atlas.views.receipt import Difference, ReceiptView

MOST = 3  # sentences before the rest is counted
STORED = "stored."
UNSAID = ("tied",)
"""Keys of which the weights ledger says whether they change anything: a head that is stored apart may be the same."""
ROTATION = "every position is rotated otherwise, so attention changes whatever was trained"
CHOICE = "the router chooses experts by another rule"
SCALE = "the routed output is scaled otherwise at every token"
SIGHT = "a token sees another stretch of the text"
NORM = "every normalised state changes a little"
SOFTMAX = "the rows that one checkpoint alone has take probability in its softmax"
ANY = "every token is computed otherwise, whatever was trained"
SETTINGS = (
    ("rope.theta", "rotation base (rope_theta)", ROTATION),
    ("rope", "rope setting {last}", ROTATION),
    ("router.renormalise", "renormalisation of the chosen experts' weights (norm_topk_prob)", SCALE),
    ("router.scale", "factor on the routed output (routed_scaling_factor)", SCALE),
    ("router.combine", "rule by which expert outputs are combined", SCALE),
    ("routed_scale", "factor on the routed output", SCALE),
    ("output_scale", "factor on the output of the experts", SCALE),
    ("router", "router setting {last}", CHOICE),
    ("mixer.window", "sliding window of the attention", SIGHT),
    ("mixer.chunk", "chunk of the attention", SIGHT),
    ("eps", "epsilon of a norm", NORM),
    ("vocab", "number of token ids", SOFTMAX),
    ("norm_eps", "epsilon of a norm", NORM),
    ("", "setting {last}", ANY),
)
"""Parts of a dotted key, what people call the setting, and why it matters; the first that a key holds speaks."""
NEAR = "values that it cannot hold are rounded, and tokens near a boundary go to other experts"
ROUTING = {"router": ("router", NEAR), "selection_bias": ("selection bias", NEAR)}
EXPERTS = "routed_expert"


def causes(receipt: ReceiptView) -> list[str]:
    """What differs beside the trained values, each in a sentence, settings before formats; none of a baseline."""
    rows = receipt.method.differences or ()
    settings = [row for row in rows if not row.key.startswith(STORED) and row.key not in UNSAID]
    formats = [row for row in rows if row.key.startswith(STORED) and _costs(receipt, _class(row))]
    found = [*_settings(settings), *_formats(formats)]
    more = len(found) - MOST
    return found if more <= 0 else [*found[:MOST], f"{more} more, in the receipt under method.differences"]


def _settings(rows: Sequence[Difference]) -> Iterator[str]:
    """One sentence for each name and pair of values, however many keys have that name."""
    together: dict[tuple[str, str, str], list[Difference]] = {}
    for row in rows:
        last = shown(row.key.rsplit(".", 1)[-1])
        name, why = _meaning(f".{row.key}.")
        together.setdefault(
            (name.format(last=last), why, f"{row.value('base')} {row.value('tuned')}"), []
        ).append(row)
    for (name, why, _), alike in together.items():
        yield _sentence(name, alike, why)


def _meaning(key: str) -> tuple[str, str]:
    return next((name, why) for part, name, why in SETTINGS if not part or f".{part}." in key)


def _formats(rows: Sequence[Difference]) -> Iterator[str]:
    """The router's formats one by one, then what else is stored alike together."""
    for kind, (name, why) in ROUTING.items():
        for row in rows:
            if _class(row) == kind:
                yield _sentence(f"format of the {name}", [row], why)
    together: dict[tuple[str, str], list[Difference]] = {}
    for row in rows:
        if _class(row) not in ROUTING:
            together.setdefault((str(row.value("base")), str(row.value("tuned"))), []).append(row)
    for alike in together.values():
        names = ", ".join(_class(row).replace("_", " ") for row in alike)
        why = "values that it cannot hold are rounded, which every drift includes"
        yield _sentence(f"format of {names}", alike, why)


def _class(row: Difference) -> str:
    return row.key.removeprefix(STORED)


def _costs(receipt: ReceiptView, kind: str) -> bool:
    """Whether a narrower format may have changed a class: not where it holds every value there is all the same."""
    entry = ((receipt.weights.classes if receipt.weights else None) or {}).get(kind)
    if entry is not None and entry.changed == 0:
        return False
    found = [layer.channel("content_quantisation") for layer in receipt.layers]
    costs = [cost.estimate for cost in found if cost is not None and cost.estimate is not None]
    return kind != EXPERTS or not costs or any(costs)


def _sentence(name: str, rows: Sequence[Difference], why: str) -> str:
    """What a setting or a format is on both sides; rows of equal values, which may concern several layers."""
    row, layers = rows[0], sorted({layer for one in rows for layer in one.layers or ()})
    where = f", in layer{'s' if len(layers) > 1 else ''} {ranges(layers)}" if layers else ""
    return (
        f"{name}: base has {_value(row.value('base'))}, tuned has {_value(row.value('tuned'))}{where}; {why}"
    )


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return shown(", ".join(f"{key} {_value(inner)}" for key, inner in value.items()), 120)
    return f"{value:.12g}" if isinstance(value, float) else shown(str(value))
