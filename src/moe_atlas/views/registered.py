"""What was registered before the audit: the policy, the lock, the checkpoints."""

from __future__ import annotations

from moe_atlas.views.view import View, integer, integers, mapping, number, part, parts, text, texts


class WeightRules(View):
    """Which classes of tensors have to change, and which must not."""

    must_change = texts().or_none()
    must_not_change = texts().or_none()


class Limits(View):
    """Limits of one kind, looked up by name; a null limit gates nothing."""


class ProvisionalOrigin(View):
    """The copy of the base that provisional budgets are a multiple of."""

    bits = integer()
    factor = number()


class SetFor(View):
    """What the budgets were set for."""

    from_base = part(ProvisionalOrigin).or_none()


class Policy(View):
    """The registered policy."""

    stage = text()
    confidence = number()
    resamples = integer()
    rewrite = mapping()
    damage = mapping()
    weights = part(WeightRules).or_none()
    allow = texts().or_none()
    task = text().or_none()
    set_for = part(SetFor).or_none()

    def budget(self, key: str) -> float | None:
        """Return the budget of a drift; None where it gates nothing."""
        return Limits(self.rewrite, self.at("rewrite")).number_at(key)

    def margin(self, key: str) -> float | None:
        """Return the limit of a damage, such as ``nll``; None where it gates nothing."""
        return Limits(self.damage, self.at("damage")).number_at(key)

    def allows(self, name: str) -> bool:
        """Whether the policy frees something by name."""
        return name in (self.allow or ())


class LockFacts(View):
    """The lock of the registration."""

    sha256 = text().or_none()
    content_sha256 = text().or_none()
    policy_sha256 = text().or_none()
    registered_at = text().or_none()


class RegisteredWindows(View):
    """How windows were drawn; a receipt stores what the registration says."""

    seed = integer()
    tokens = integer().or_none()
    per_document = integer().or_none()


class Evaluation(View):
    """Where experts were evaluated."""

    experts = text().or_none()
    token_stride = integer().or_none()
    quantile = number().or_none()


class TokenizerFacts(View):
    """What made tokens of the documents: a file, or nothing where tokens are bytes or ids."""

    kind = text()


class ProbeView(View):
    """The registered probe."""

    name = text()
    policy = part(Policy)
    protected_layers = integers()
    windows = part(RegisteredWindows)
    evaluation = part(Evaluation)
    lock = part(LockFacts).or_none()
    tokenizer = part(TokenizerFacts)


class Skipped(View):
    """A tensor that is not replayed, and the part of the checkpoint that it belongs to."""

    part = text()


class CheckpointFacts(View):
    """One checkpoint as it was read; what is missing was not recorded."""

    stored_at = text("path").or_none()
    tensors = integer().or_none()
    bytes_read = integer().or_none()
    dtype = texts().or_none()
    skipped = parts(Skipped).or_none()
    family = text().or_none()
    digest = text().or_none()
    values_digest = text().or_none()
    config_sha256 = text().or_none()
