"""The pairs: what was done to a base, and what should be said about it.

`expect` is by construction, before any measurement: `pass` for what one would promote, `fail` for what no lab
would, `open` where only the measured forgetting can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from scripts.lab import surgery
from scripts.lab.corpus import DOMAINS
from scripts.lab.families import Family
from scripts.lab.training import tune
from scripts.training.checkpoint import Tensors
from scripts.training.recipes import Tune

LIGHT = Tune(domains=DOMAINS)
NARROW = Tune(replay=0, items=36, lr=4e-3, router_lr=4e-3)
FROZEN = {
    "all": (),
    "backbone": ("router", "routed_expert"),
    "router": ("routed_expert", "attention"),
    "experts": ("router", "attention"),
    "attention": ("router", "routed_expert"),
}
CALIBRATION_SEEDS = range(101, 107)


@dataclass(frozen=True)
class Pair:
    """One intervention.

    Attributes:
        name: unique in its family.
        kind: what it belongs to in the table.
        expect: pass, fail or open.
        named: the gate that would name the damaged object; empty where there is none to name.
        make: from a family and its base to the tuned tensors.
        calibrates: whether budgets come from it; such a pair is never judged.
        frozen: tensor classes that the run would have registered as untouched.
        moved: tensor classes that it would have registered as changed.
        allows: what its policy would have allowed by name.
    """

    name: str
    kind: str
    expect: str
    named: str
    make: Callable[[Family, Tensors], Tensors]
    calibrates: bool = False
    frozen: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()


def tuned(name: str, kind: str, expect: str, recipe: Tune, named: str = "", calibrates: bool = False) -> Pair:
    """A pair made by tuning; what the recipe does not train must keep its bytes."""
    pair = Pair(name, kind, expect, named, lambda f, base: tune(f, base, recipe), calibrates)
    return replace(pair, frozen=FROZEN[recipe.trains])


def all_pairs(family: Family) -> list[Pair]:
    """Every pair of a family; a few exist in one family only."""
    return [*calibrating(), *tunes(), *precision(), *merges(), *broken(family)]


def calibrating() -> list[Pair]:
    """Replay SFT of other seeds: they set the budgets."""
    return [
        tuned(f"replay-sft-{seed}", "replay SFT", "pass", replace(LIGHT, seed=seed), calibrates=True)
        for seed in CALIBRATION_SEEDS
    ]


def tunes() -> list[Pair]:
    """Training of every kind."""
    return [
        tuned("replay-sft-1", "replay SFT", "pass", replace(LIGHT, seed=1)),
        tuned("replay-sft-2", "replay SFT", "pass", replace(LIGHT, seed=2)),
        tuned("replay-sft-sums", "replay SFT", "pass", replace(LIGHT, task="sums", seed=3)),
        tuned("light-sft", "light SFT", "open", replace(LIGHT, replay=0, lr=2e-4, steps=40)),
        tuned("no-replay-sft", "SFT without replay", "open", replace(LIGHT, replay=0)),
        tuned(
            "pretraining-more", "continued pretraining", "open", replace(LIGHT, task=None, items=0, replay=24)
        ),
        tuned(
            "pretraining-comments",
            "continued pretraining",
            "open",
            replace(LIGHT, task=None, items=0, replay=24, domains=("comments",), lr=4e-3, router_lr=4e-3),
        ),
        tuned("narrow-style", "narrow hard tuning", "fail", NARROW),
        tuned("narrow-sums", "narrow hard tuning", "fail", replace(NARROW, task="sums")),
        tuned("backbone-shift", "frozen experts and router", "fail", replace(NARROW, trains="backbone")),
        tuned("backbone-replay", "frozen experts and router", "open", replace(LIGHT, trains="backbone")),
        tuned(
            "router-only",
            "router only",
            "open",
            replace(NARROW, trains="router", lr=1e-2, router_lr=1e-2),
            "boundary",
        ),
        tuned("router-replay", "router only", "open", replace(LIGHT, trains="router", router_lr=1e-3)),
        tuned("experts-only", "experts only", "fail", replace(NARROW, trains="experts", lr=8e-3), "content"),
        tuned("experts-replay", "experts only", "open", replace(LIGHT, trains="experts")),
    ]


def precision() -> list[Pair]:
    """Low-precision copies, back in bfloat16."""
    return [
        Pair("fp8-blocks", "low precision", "open", "", lambda f, b: surgery.fp8_blocks(b)),
        Pair("int8-groups", "low precision", "open", "", lambda f, b: surgery.int_groups(b, 8)),
        Pair("int4-groups", "low precision", "open", "", lambda f, b: surgery.int_groups(b, 4)),
    ]


def merges() -> list[Pair]:
    """Adapters merged well and badly."""
    light, attention = replace(LIGHT, seed=4), replace(LIGHT, seed=5, trains="attention", lr=3e-3)

    def merged(f: Family, base: Tensors, scale: float) -> Tensors:
        return surgery.low_rank_delta(base, tune(f, base, attention), 4, scale)

    return [
        Pair("adapter-merged", "adapter merged", "open", "", lambda f, b: merged(f, b, 1.0)),
        Pair("adapter-scaled-8", "adapter merged", "fail", "", lambda f, b: merged(f, b, 8.0)),
        Pair(
            "never-landed", "dropped delta", "fail", "weights", lambda f, b: dict(b), moved=("routed_expert",)
        ),
        Pair(
            "experts-dropped",
            "dropped delta",
            "fail",
            "weights",
            lambda f, b: surgery.dropped_delta(b, tune(f, b, light), lambda name: ".experts." not in name),
            moved=("routed_expert",),
        ),
        Pair(
            "scrambled",
            "scrambled delta",
            "fail",
            "",
            lambda f, b: surgery.scrambled_delta(b, tune(f, b, NARROW), surgery.is_matrix),
        ),
    ]


def broken(family: Family) -> list[Pair]:
    """What converters, resumes and expert parallelism break."""
    layer = list(family.layers)[1]
    pairs = [
        Pair(
            "relabelled",
            "relabelling",
            "pass",
            "",
            lambda f, b: surgery.relabelled(f, b),
            allows=("identical",),
        ),
        Pair(
            "swapped",
            "expert swap",
            "fail",
            "identity",
            lambda f, b: surgery.experts_from(b, layer, {2: 9, 9: 2}),
        ),
        Pair("clone", "clone", "fail", "identity", lambda f, b: surgery.experts_from(b, layer, {5: 3})),
        Pair(
            "slice-copied",
            "clone",
            "fail",
            "identity",
            lambda f, b: surgery.experts_from(b, layer, {e: e - 4 for e in range(4, 8)}),
        ),
        Pair(
            "expert-zeroed",
            "expert dropped",
            "fail",
            "identity",
            lambda f, b: surgery.zeroed_expert(b, layer, 7),
        ),
        Pair(
            "router-collapse", "router collapse", "fail", "boundary", lambda f, b: surgery.collapsed_router(b)
        ),
        Pair("router-noise", "router noise", "fail", "boundary", lambda f, b: surgery.noisy_router(b, 0.5)),
        Pair("gains-lost", "lost on resume", "fail", "", lambda f, b: surgery.unit_gains(b)),
    ]
    if family.biased:
        pairs.append(
            Pair("bias-lost", "lost on resume", "fail", "boundary", lambda f, b: surgery.without_bias(b))
        )
    return pairs
