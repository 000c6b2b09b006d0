"""What an explanation says in sentences, the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator

from moe_atlas.explanation.documents import DomainDamage
from moe_atlas.explanation.explain import Explanation
from moe_atlas.explanation.passages import Passage
from moe_atlas.report.figures import unit
from moe_atlas.text import number, shown

WORST = 5  # pieces named under a passage
TEXT_INSIDE = "This holds text of the probe's documents: do not publish it unread."
NO_INTERVALS = "All numbers describe these documents. They have no intervals, and no verdict rests on them."
NO_TOKENS = "There are no token data, so no token, kind of token or route is shown:"


def worst_pieces(passage: Passage) -> str:
    """Return the pieces of a passage that lost most, with the loss before and after; empty if none lost any."""
    named = [
        f"“{shown(piece.text, 24)}” {number(piece.base)} → {number(_sum(piece.base, piece.increase))}"
        for piece in passage.worst(WORST)
    ]
    return f"most: {'; '.join(named)}" if named else ""


def _sum(base: float | None, increase: float | None) -> float | None:
    return None if base is None or increase is None else base + increase


def percent(share: float) -> str:
    """Return a share in per cent, never rounded to 0 or 100 unless it is exactly that."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{min(max(100 * share, 0.1), 99.9):.3g} %".replace(" %", "%")


def signed(value: float, digits: int = 3) -> str:
    """Return a change with its sign."""
    if value == float("inf"):
        return "not finite"
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def summary(explanation: Explanation) -> Iterator[str]:
    """Yield the sentences at the head of an explanation."""
    for domain in explanation.domains:
        if domain.documents:
            yield f"{shown(domain.name)} ({domain.role}): {damage(domain, unit(explanation.receipt))}"
        if (spread := explanation.spreads.get(domain.name)) is not None and spread.half is not None:
            yield (
                f"{shown(domain.name)}: the loss rose at {percent(spread.risen)} of the scored tokens; "
                f"{percent(spread.half)} of them hold half of the loss gained"
            )
    yield from routes(explanation)
    if not explanation.has_tokens:
        yield f"{NO_TOKENS} {_remedy(explanation)}"


def _remedy(explanation: Explanation) -> str:
    named = explanation.receipt.evidence.tokens
    again = "audit the pair again with --tokens"
    return again if named is None else f"restore {shown(named.file)}, or {again}"


def damage(domain: DomainDamage, nats: str) -> str:
    """Return what happened to the documents of a domain; `nats` is the unit of a loss."""
    count = len(domain.documents)
    if domain.unchanged:
        return f"every document has exactly the same loss in both checkpoints ({count} documents)"
    worse = domain.worse
    said = f"{len(worse)} of {count} documents got worse"
    if domain.quantiles:
        said += f"; the loss of the middle document changed by {signed(domain.quantiles[2])} {nats}"
    if worse:
        said += f"; the worst is {shown(worse[0].name)} ({signed(worse[0].increase)})"
    return said


def routes(explanation: Explanation) -> Iterator[str]:
    """Yield what happened to the routed sets."""
    if not explanation.flows:
        return
    most = max(explanation.flows, key=lambda layer: layer.replaced)
    if not most.replaced:
        yield "no routed set changed, at any token of the base domains in any layer"
        return
    changed = sum(layer.replaced > 0 for layer in explanation.flows)
    yield (
        f"routed sets changed in {changed} of {len(explanation.flows)} layers, most in layer {most.layer}: "
        f"at {percent(most.changed)} of the tokens of base domains"
    )
