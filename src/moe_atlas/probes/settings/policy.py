"""The policy of a probe file: budgets, limits, weight rules and the declared stage.

`describe()` of every class returns the part in the file's own spelling, defaults filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

CHART_STAGE = "chart-preserving"
EXPANSIVE_STAGE = "knowledge-expansive"
DAMAGE_STAGE = "damage-only"  # holds no channel of the atlas against a budget
STAGES = (CHART_STAGE, EXPANSIVE_STAGE, DAMAGE_STAGE)
TENSOR_CLASSES = (
    "router",
    "selection_bias",
    "routed_expert",
    "shared_expert",
    "dense_mlp",
    "attention",
    "norm",
    "embedding",
    "head",
    "other",
)
# The names that a policy may allow, each with its meaning. None is allowed by default.
ALLOWANCES = {
    "identical": "the two checkpoints may hold the same values: conversions, reshardings, smoke tests",
    "unmeasured_experts": "experts that too few probe tokens use may change far more than the others of their layer",
    "vocabulary_rows": "rows of embedding and head may be permuted, made far longer, or replaced in numbers",
    "mtp": "multi-token-prediction tensors may be missing, added or replaced: no server drafts with them",
    "modalities": "tensors of vision and audio may be missing, added or replaced: only text is served",
    "activation_scales": "scales of quantised activations may be missing, added or replaced: the server takes its own",
    "tokenizer": "the tokenizer beside the tuned checkpoint may number the probe's text in another way",
    "frozen_layers": "a class that must change may do so in some layers only: tunes that freeze layers on purpose",
    "config_keys": "audits under a central policy may accept keys of config.json that nothing reads",
}
UNREPLAYED = ("mtp", "modalities", "activation_scales")  # parts that a server may use and no replay reads


@dataclass(frozen=True)
class Refinement:
    """Weights mu1..mu3 and threshold tau of the refinement margin (Eq. 32)."""

    mu: tuple[float, float, float]
    tau: float

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        return {"mu": list(self.mu), "tau": self.tau}


@dataclass(frozen=True)
class Handoff:
    """Weights lambda1, lambda2 of the handoff margin (Eq. 31); reported, never gated."""

    lambda_: tuple[float, float]

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        return {"lambda": list(self.lambda_)}


@dataclass(frozen=True)
class Smooth:
    """Inverse temperatures beta of the smooth surrogates (Eq. 18-30); reported, never gated.

    An occupancy beta below 20 E ln E lets the smoothing error reach 5 % of a balanced share.
    """

    adjacency: float
    occupancy: float
    handoff: float
    refinement: float

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        return {
            "adjacency": self.adjacency,
            "occupancy": self.occupancy,
            "handoff": self.handoff,
            "refinement": self.refinement,
        }


@dataclass(frozen=True)
class Rewrite:
    """Budgets of the protected-atlas predicate; every upper bound must stay below its budget.

    Attributes:
        limits: the budget of every gated channel, by its name in the table of channels; None means *not gated*.
        refinement: the refinement margin must be positive.
        handoff: weights of the handoff margin.
        smooth: temperatures of the smooth surrogates.

    The file must write every drift channel, if only as null, so that an ungated drift channel is a registered decision.
    An absent guard takes its default, or the budget of the channel from which it is computed if that is larger. Other
    absent channels are not gated.
    """

    limits: Mapping[str, float | None]
    refinement: Refinement | None
    handoff: Handoff | None
    smooth: Smooth | None

    def budgets(self) -> dict[str, float]:
        """Return the gated budgets, by key."""
        return {key: value for key, value in self.limits.items() if value is not None}

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        out: dict[str, Any] = dict(self.limits)
        for key in ("refinement", "handoff", "smooth"):
            part = getattr(self, key)
            out[key] = None if part is None else part.describe()
        return out


class Unregistered(Enum):
    """The value of a limit that a file does not mention, if null has a meaning of its own."""

    UNREGISTERED = "unregistered"


UNREGISTERED = Unregistered.UNREGISTERED


@dataclass(frozen=True)
class Damage:
    """Limits of the base-domain predicate, in nats per token.

    None means not gated. The predicate never passes with an ungated limit, except with an ungated `kl`.

    Attributes:
        nll: margin of the mean paired increase of a domain.
        kl: limit of the mean divergence of a domain's next-token distributions from the base's; None means that
            the file leaves it ungated, `UNREGISTERED` that the file does not mention it.
        document_nll: increase above which a single document counts as damaged.
        document_share: limit of the share of damaged documents (tail guard).
    """

    nll: float | None
    kl: float | None | Unregistered
    document_nll: float | None
    document_share: float | None

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling, without `kl` if the file leaves it out."""
        registered = {} if self.kl is UNREGISTERED else {"kl": self.kl}
        share = {"document_nll": self.document_nll, "document_share": self.document_share}
        return {"nll": self.nll} | registered | share


@dataclass(frozen=True)
class WeightRules:
    """Tensor classes whose values must, or must not, differ between the checkpoints."""

    must_not_change: tuple[str, ...]
    must_change: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        return {"must_not_change": list(self.must_not_change), "must_change": list(self.must_change)}


@dataclass(frozen=True)
class FromBase:
    """The origin of provisional budgets: a multiple of what a 4-bit copy of one base does, and no healthy tune.

    Attributes:
        base: digest of the base's tensors.
        probe: digest of the registration under which the copy was measured.
        bits: bits of the copy's integers.
        group: elements of the copy that share a scale.
        factor: the budgets as a multiple of the copy's upper bounds.
    """

    base: str
    probe: str
    bits: int
    group: int
    factor: float

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        return asdict(self)


@dataclass(frozen=True)
class SetFor:
    """What the budgets were set for; an audit of another kind warns. None means not recorded.

    Attributes:
        family: the model family.
        top_k: experts of a token.
        experts: the evaluation set.
        from_base: the origin of provisional budgets; None for budgets of another origin.
    """

    family: str | None
    top_k: int | None
    experts: str | None
    from_base: FromBase | None = None

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling, without `from_base` if there is none."""
        out: dict[str, Any] = {"family": self.family, "top_k": self.top_k, "experts": self.experts}
        return out if self.from_base is None else out | {"from_base": self.from_base.describe()}


@dataclass(frozen=True)
class Policy:
    """Everything that turns measurements into a verdict.

    Attributes:
        stage: the declared stage, of `STAGES`; the first is the default.
        confidence: level of every interval (default 0.95).
        resamples: bootstrap resamples (default 4000).
        rewrite: budgets of the protected atlas.
        damage: limits of the base domains.
        weights: tensor classes that must or must not change.
        task_none: the file says ``task: none``, required when there is no task domain.
        set_for: family, k and evaluation set that the budgets were set for; the base behind provisional budgets.
        allow: names out of `ALLOWANCES`, in the order of that table.
    """

    stage: str
    confidence: float
    resamples: int
    rewrite: Rewrite
    damage: Damage
    weights: WeightRules
    task_none: bool
    set_for: SetFor
    allow: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling, defaults filled in."""
        out: dict[str, Any] = {
            "stage": self.stage,
            "confidence": self.confidence,
            "resamples": self.resamples,
        }
        out |= {"rewrite": self.rewrite.describe(), "damage": self.damage.describe()}
        out |= {"weights": self.weights.describe(), "set_for": self.set_for.describe()}
        out |= {"allow": list(self.allow)}
        return out | ({"task": "none"} if self.task_none else {})
