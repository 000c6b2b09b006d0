"""What was registered before the audit: the policy, the lock, the checkpoints."""

from __future__ import annotations

from moe_atlas.views.view import (
    View,
    flag,
    integer,
    integers,
    mapping,
    number,
    numbers,
    part,
    parts,
    text,
    texts,
)


class WeightRules(View):
    """Which classes of tensors have to change, and which must not."""

    must_change = texts().or_none()
    must_not_change = texts().or_none()


class Limits(View):
    """Limits of one kind, looked up by name; a null limit gates nothing."""


class Refinement(View):
    """The weights and the threshold of the refinement margin."""

    mu = numbers()
    tau = number()


class Smooth(View):
    """The temperatures of the smooth forms."""

    occupancy = number()


class Rewrite(Limits):
    """The budgets of a rewrite, looked up by name, and what the lifecycle margins need."""

    refinement = part(Refinement).or_none()
    smooth = part(Smooth).or_none()


class ProvisionalOrigin(View):
    """The copy of the base that provisional budgets are a multiple of."""

    base = text()
    bits = integer()
    factor = number()


class SetFor(View):
    """What the budgets were set for."""

    family = text().or_none()
    top_k = integer().or_none()
    experts = text().or_none()
    from_base = part(ProvisionalOrigin).or_none()


class Policy(View):
    """The registered policy."""

    stage = text()
    confidence = number()
    resamples = integer()
    rewrite = part(Rewrite)
    damage = mapping()
    weights = part(WeightRules).or_none()
    allow = texts().or_none()
    task = text().or_none()
    set_for = part(SetFor).or_none()

    def budget(self, key: str) -> float | None:
        """Return the budget of a drift; None where it gates nothing."""
        return self.rewrite.number_at(key)

    def margin(self, key: str) -> float | None:
        """Return the limit of a damage, such as ``nll``; None where it gates nothing."""
        return Limits(self.damage, self.at("damage")).number_at(key)

    def allows(self, name: str) -> bool:
        """Whether the policy frees something by name."""
        return name in (self.allow or ())


class CentralPolicy(View):
    """The central policy file that a registration was made under."""

    name = text()
    sha256 = text()


class LockFacts(View):
    """The lock of the registration."""

    sha256 = text().or_none()
    content_sha256 = text().or_none()
    policy_sha256 = text().or_none()
    registered_at = text().or_none()
    policy_from = part(CentralPolicy).or_none()


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


class RegisteredDomain(View):
    """A domain as it was registered."""

    name = text()
    role = text()


class ProbeView(View):
    """The registered probe; a row of `overlaps` or `left_out` is one of the lock's, which has its sentences."""

    name = text()
    policy = part(Policy)
    domains = parts(RegisteredDomain)
    protected_layers = integers()
    windows = part(RegisteredWindows)
    evaluation = part(Evaluation)
    lock = part(LockFacts).or_none()
    tokenizer = part(TokenizerFacts)
    overlaps = parts(View)
    left_out = parts(View).or_none()


class Skipped(View):
    """A tensor that is not replayed, and the part of the checkpoint that it belongs to."""

    part = text()


class ClassDigest(View):
    """The values of all tensors of one class in one layer; a null layer is outside the layers."""

    kind = text("class")
    layer = integer().or_none()
    tensors = integer()
    values = text()


class AcceptedKey(View):
    """A key of config.json that nothing reads and that somebody accepted."""

    key = text()
    value = text()


class ListedFile(View):
    """A file beside the weights; what was not read has no digest."""

    file = text()
    kind = text()
    bytes = integer().or_none()
    sha256 = text().or_none()
    content = text().or_none()
    unread = text().or_none()


class FurtherFiles(View):
    """The files beside the weights that are not listed."""

    files = integer()
    sha256 = text().or_none()


class FilesBeside(View):
    """The files beside the weights."""

    listed = parts(ListedFile)
    more = part(FurtherFiles)


class TokenizerBeside(View):
    """What came of holding the tokenizer beside a checkpoint against the registered tokenizer."""

    result = text()
    reason = text().or_none()


class AdapterFacts(View):
    """The adapter of a checkpoint that consists of a base and an adapter."""

    reading = text("as")
    modules = integer()
    replaced = integer()
    ranks = integers()
    alphas = numbers()
    rank_stabilised = flag()
    dora = flag()
    packing = text().or_none()
    side = text().or_none()
    changes_nothing = flag()
    other_base = flag()
    named_base = text().or_none()


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
    classes = parts(ClassDigest).or_none()
    accepted_config_keys = parts(AcceptedKey).or_none()
    vocabulary = integer()
    config = mapping()
    files = part(FilesBeside)
    tokenizer = part(TokenizerBeside)
    adapter = part(AdapterFacts).or_none()
