"""What follows from the measurements: evidence, predicates, claims, advice."""

from __future__ import annotations

from moe_atlas.views.view import View, flag, integer, number, parts, text, texts


class EvidenceLine(View):
    """One gate that was held, with the numbers it rests on."""

    gate = text()
    result = text()
    estimate = number().or_none()
    low = number().or_none()
    high = number().or_none()
    simultaneous_low = number().or_none()
    budget = number().or_none()
    reason = text().or_none()
    layer = integer().or_none()
    expert = integer().or_none()
    domain = text().or_none()
    kind = text("class").or_none()
    rule = text().or_none()
    attempt = text().or_none()
    part = text().or_none()
    times_copy = number().or_none()


class PredicateView(View):
    """One of the three predicates."""

    outcome = text()
    passed = flag().or_none()
    evidence = parts(EvidenceLine)
    reason = text().or_none()


class Claim(View):
    """One sentence that the receipt licenses, contradicts or leaves open."""

    claim = text()
    statement = text()
    status = text()
    rests_on = texts()
    does_not_say = text()
    layer = integer().or_none()
    estimate = number().or_none()
    low = number().or_none()
    high = number().or_none()


class NextStep(View):
    """What to try first."""

    pattern = text()
    object = text()
    first = text()


class Warned(View):
    """A condition that the verdict does not show."""

    code = text()
    message = text()


class Attempt(View):
    """What another receipt says of the same base under the same registration."""

    receipt_sha256 = text().or_none()
    base_digest = text().or_none()
    tuned_digest = text().or_none()
    tuned_weights = text().or_none()
    lock_digest = text().or_none()
    protected_atlas_rewrite = text().or_none()
    task_reached = flag().or_none()
    task_improved = flag().or_none()
    nothing_tuned = flag().or_none()
