"""What every form of a report says first, in one order: likely cause, change of loss, reasons, conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from moe_atlas.derivation.unreplayed_warnings import PARTS
from moe_atlas.probes.settings.policy import ALLOWANCES, UNREPLAYED
from moe_atlas.report import words
from moe_atlas.report.causes import causes
from moe_atlas.text import interval, number, shown

Receipt = Mapping[str, Any]
LOSS = "change of loss"
DOMAINS = 3  # named of each role


class Said(NamedTuple):
    """One line of the head.

    Attributes:
        title: what introduces it, such as ``likely cause``, ``fail`` or the name of a predicate.
        text: the sentence, which may hold names from files.
    """

    title: str
    text: str

    @property
    def line(self) -> str:
        """Title and sentence."""
        return f"{self.title}: {self.text}" if self.title else self.text


def head(receipt: Receipt, most: int | None = None) -> list[Said]:
    """Return the lines in reading order.

    Args:
        receipt: a derived receipt.
        most: gates that are named as reasons before the rest is counted; None names all.
    """
    return [*because(receipt), *losses(receipt), *reasons(receipt, most), *conditions(receipt)]


def because(receipt: Receipt) -> Iterator[Said]:
    """What differs beside the trained values; a pass needs no cause, and should know of it all the same."""
    title = "differs beside the training" if receipt["verdict"] == "pass" else "likely cause"
    for sentence in causes(receipt):
        yield Said(title, sentence)


def reasons(receipt: Receipt, most: int | None = None) -> Iterator[Said]:
    """Why the verdict is no pass: the gates that decided, then predicates that are open for another reason."""
    groups = words.deciding(receipt)
    for group in groups[:most]:
        yield Said(group.result, group.sentence)
    if most is not None and len(groups) > most:
        yield Said("", f"… and {len(groups) - most} more gates")
    for name, reason in words.open_reasons(receipt):
        yield Said(name, reason)


def losses(receipt: Receipt) -> Iterator[Said]:
    """The change of next-token loss on base and task domains, worst first: the one number that everybody knows."""
    parts = []
    for role in ("base", "task"):
        found = [row for row in receipt["domains"] if row["role"] == role]
        known = [row for row in found if (row.get("nll_increase") or {}).get("estimate") is not None]
        known.sort(key=lambda row: -row["nll_increase"]["estimate"])
        named = [f"{shown(str(row['name']))} {_signed(row['nll_increase'])}" for row in known[:DOMAINS]]
        more = [f"and {len(known) - DOMAINS} more"] if len(known) > DOMAINS else []
        if known:
            parts.append(f"{role} {', '.join([*named, *more])}")
    if parts:
        yield Said(LOSS, f"{'; '.join(parts)} (nats per token, above 0 is worse)")


def _signed(increase: Mapping[str, Any]) -> str:
    return f"{'+' if increase['estimate'] > 0 else ''}{interval(increase)}"


def conditions(receipt: Receipt) -> Iterator[Said]:
    """What the verdict does not speak of: channels without a budget, what the policy allows, what was not replayed."""
    found = unjudged(receipt)
    if found:
        yield Said("not judged", found)
    allowed = receipt["probe"]["policy"].get("allow") or ()
    if allowed:
        yield Said("allowed by the policy", "; ".join(f"{name} ({ALLOWANCES[name]})" for name in allowed))
    parts = _not_replayed(receipt)
    if parts:
        yield Said(
            "not replayed", f"{', '.join(parts)}: compared value by value, and no probe token passes them"
        )


def unjudged(receipt: Receipt) -> str:
    """The channels that moved and that no budget was registered for, each with its worst protected layer."""
    worst: dict[str, Mapping[str, Any]] = {}
    for line in receipt["predicates"]["protected_atlas_rewrite"]["evidence"]:
        if line["result"] != "not-gated" or not line["estimate"] or line.get("layer") is None:
            continue
        if line["estimate"] > max(0.0, worst.get(line["gate"], {}).get("estimate", 0.0)):
            worst[line["gate"]] = line
    named = [
        f"{words.gate_name(gate)} {number(line['estimate'])} (layer {line['layer']})"
        for gate, line in worst.items()
    ]
    return f"{', '.join(named)}: no budget registered" if named else ""


def _not_replayed(receipt: Receipt) -> Sequence[str]:
    """The parts of a checkpoint that a server may use and no replay does, with their tensors."""
    most: Counter[str] = Counter()
    for found in receipt["checkpoints"].values():
        most |= Counter(
            row["part"] for row in (found or {}).get("skipped") or () if row["part"] in UNREPLAYED
        )
    return [f"{count} tensor{'s' if count > 1 else ''} ({PARTS[part]})" for part, count in most.items()]
