"""What was registered before the audit: the policy, the lock, the checkpoints."""

from __future__ import annotations

from moe_atlas.views.view import View, integers, mapping, part, text, texts


class WeightRules(View):
    """Which classes of tensors have to change, and which must not."""

    must_change = texts().or_none()
    must_not_change = texts().or_none()


class Policy(View):
    """The registered policy; its limits are looked up by name, a null limit gates nothing."""

    stage = text()
    rewrite = mapping()
    damage = mapping()
    weights = part(WeightRules).or_none()
    allow = texts().or_none()
    task = text().or_none()

    def allows(self, name: str) -> bool:
        """Whether the policy frees something by name."""
        return name in (self.allow or ())


class LockFacts(View):
    """The lock of the registration."""

    sha256 = text().or_none()


class ProbeView(View):
    """The registered probe."""

    policy = part(Policy)
    protected_layers = integers()
    lock = part(LockFacts).or_none()


class CheckpointFacts(View):
    """One checkpoint as it was read; what is missing was not recorded."""

    family = text().or_none()
    digest = text().or_none()
    values_digest = text().or_none()
    config_sha256 = text().or_none()
