"""What every form of a report says first, in one order.

The order is that of a colleague's questions: what happened (a sentence for each predicate, damage first), why (what
else differs, the change of loss, the gates that decided), and what the verdict does not speak of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moe_atlas.derivation.unreplayed_warnings import PARTS
from moe_atlas.probes.settings.policy import ALLOWANCES, UNREPLAYED
from moe_atlas.report import figures, words
from moe_atlas.report.causes import causes
from moe_atlas.report.sentences import sentences, unjudged
from moe_atlas.report.yardstick import against_copy
from moe_atlas.text import shown
from moe_atlas.views.measured import Interval
from moe_atlas.views.receipt import ReceiptView

LOSS = "change of loss"
DOMAINS = 3  # named of each role


class Said(NamedTuple):
    """One line of the head.

    Attributes:
        title: what introduces it, such as ``damage``, ``likely cause``, ``fail`` or the name of a predicate.
        text: the sentence, which may hold names from files.
        result: what a gate or predicate came to; empty for what is neither.
    """

    title: str
    text: str
    result: str = ""

    @property
    def line(self) -> str:
        """Title and sentence."""
        return f"{self.title}: {self.text}" if self.title else self.text


def head(receipt: ReceiptView, most: int | None = None) -> list[Said]:
    """Return the lines in reading order.

    Args:
        receipt: a derived receipt.
        most: gates that are named as reasons before the rest is counted; None names all.
    """
    return [
        *told(receipt),
        *because(receipt),
        *losses(receipt),
        *reasons(receipt, most),
        *conditions(receipt),
    ]


def told(receipt: ReceiptView) -> Iterator[Said]:
    """A plain sentence for each predicate."""
    for sentence in sentences(receipt):
        yield Said(sentence.about, sentence.text, sentence.result)


def because(receipt: ReceiptView) -> Iterator[Said]:
    """What differs beside the trained values; a pass needs no cause, and should know of it all the same."""
    title = "differs beside the training" if receipt.verdict == "pass" else "likely cause"
    for sentence in causes(receipt):
        yield Said(title, sentence)


def reasons(receipt: ReceiptView, most: int | None = None) -> Iterator[Said]:
    """Why the verdict is no pass: the gates that decided, then predicates that are open for another reason."""
    groups = words.deciding(receipt)
    for group in groups[:most]:
        yield Said(group.result, group.sentence, group.result)
    if most is not None and len(groups) > most:
        yield Said("", f"… and {len(groups) - most} more gates")
    for name, reason in words.open_reasons(receipt):
        yield Said(name, reason)


def losses(receipt: ReceiptView) -> Iterator[Said]:
    """The change of next-token loss on base and task domains, worst first: the one number that everybody knows."""
    parts = []
    for role in ("base", "task"):
        known = [(row.name, row.nll_increase) for row in receipt.domains_of(role)]
        worst = sorted(
            ((shown(name), found) for name, found in known if found and found.estimate is not None),
            key=lambda one: -(one[1].estimate or 0.0),
        )
        named = [f"{name} {_signed(found)}" for name, found in worst[:DOMAINS]]
        more = [f"and {len(worst) - DOMAINS} more"] if len(worst) > DOMAINS else []
        if worst:
            parts.append(f"{role} {', '.join([*named, *more])}")
    if parts:
        yield Said(LOSS, f"{'; '.join(parts)} ({figures.unit(receipt)}, above 0 is worse)")


def _signed(increase: Interval) -> str:
    return f"{'+' if (increase.estimate or 0.0) > 0 else ''}{words.spelled(increase)}{against_copy(increase)}"


def conditions(receipt: ReceiptView) -> Iterator[Said]:
    """What the verdict does not speak of: channels without a budget, what the policy allows, what was not replayed."""
    adapter = receipt.checkpoint("tuned").adapter
    if adapter is not None:
        yield Said("adapter", words.adapter(adapter))
    found = unjudged(receipt)
    if found:
        yield Said("not judged", found, "not-gated")
    allowed = receipt.probe.policy.allow or ()
    if allowed:
        yield Said("allowed by the policy", "; ".join(_allowed(name) for name in allowed))
    parts = _not_replayed(receipt)
    if parts:
        yield Said(
            "not replayed", f"{', '.join(parts)}: compared value by value, and no probe token passes them"
        )


def _allowed(name: str) -> str:
    return f"{name} ({ALLOWANCES[name]})" if name in ALLOWANCES else shown(name)


def _not_replayed(receipt: ReceiptView) -> Sequence[str]:
    """The parts of a checkpoint that a server may use and no replay does, with their tensors."""
    most: Counter[str] = Counter()
    for found in receipt.checkpoints.values():
        most |= Counter(row.part for row in found.skipped or () if row.part in UNREPLAYED)
    return [f"{count} tensor{'s' if count > 1 else ''} ({PARTS[part]})" for part, count in most.items()]
