"""A whole receipt."""

from __future__ import annotations

from typing import Any

from moe_atlas.views.judged import Attempt, Claim, EvidenceLine, NextStep, PredicateView, Warned
from moe_atlas.views.measured import Aggregates, DomainRow, LayerView, Margins, NoiseFloor
from moe_atlas.views.registered import CheckpointFacts, ProbeView
from moe_atlas.views.view import (
    View,
    flag,
    integers,
    integers_or_none,
    mapping,
    named,
    number,
    part,
    parts,
    text,
    texts,
)
from moe_atlas.views.weights import Identity, VocabularyView, WeightsView
from moe_atlas.views.yardstick import Yardstick

LOOK = "look"
"""The kind of a receipt that compares a pair without a registration: it measures as an audit, and judges nothing."""


class Difference(View):
    """A setting or a stored format in which the two checkpoints differ; its values may be of any type."""

    key = text()
    layers = integers().or_none()

    def value(self, side: str) -> Any:
        """Return what ``base`` or ``tuned`` has; None where it has nothing."""
        return self.facts.get(side)


class Method(View):
    """Every choice that can move a number; those in one word or number are read from `facts`."""

    differences = parts(Difference).or_none()
    compute_dtype = text().or_none()
    router_arithmetic = text().or_none()


class ConfigDifference(View):
    """A key of config.json with its value on both sides as JSON text; None is absent."""

    key = text()
    base = text().or_none()
    tuned = text().or_none()
    rank = text()


class FileDifference(View):
    """A file beside the weights that differs."""

    file = text()
    kind = text()
    change = text()


class Differences(View):
    """What differs between the two checkpoints and no measurement sees."""

    config = parts(ConfigDifference)
    files = parts(FileDifference)


class Controls(View):
    """What is reported beside the channels and never gated."""

    parameter_distance = number().or_none()


class Timing(View):
    """When the audit ran."""

    started = text().or_none()


class ComparedClass(View):
    """A class of tensors, held against that of the earlier receipt; a null layer is outside the layers."""

    kind = text("class")
    same = flag()
    changed_layers = integers_or_none()


class Earlier(View):
    """An earlier receipt of the run, held against this checkpoint."""

    same_tensors = flag()
    classes = parts(ComparedClass).or_none()


class LedgerHead(View):
    """The head of the run's ledger when the receipt was written."""

    run = text()


class Parent(View):
    """What the receipt follows."""

    ledger = part(LedgerHead).or_none()
    receipt = part(Earlier).or_none()


class WorstDocument(View):
    """A document whose loss rose much."""

    domain = text()
    document = text()
    nll_base = number()
    nll_tuned = number()
    nll_increase = number()


class LookView(View):
    """What a look says beyond its measurements."""

    source = text()
    how = text()
    margin = number()
    documents = texts()
    findings = parts(EvidenceLine)
    changed = flag()
    worst_documents = parts(WorstDocument)


class TokenData(View):
    """The token file, from which nothing in the receipt follows."""

    file = text()
    sha256 = text()


class Evidence(View):
    """What the receipt rests on, by digest."""

    windows = text()
    sha256 = text()
    tokens = part(TokenData).or_none()
    receipt_sha256 = text()


class ReceiptView(View):
    """A receipt, or what is known of it so far: a fact is asked for when it is read."""

    kind = text()
    verdict = text().or_none()
    qualified = texts()
    predicates = named(PredicateView)
    claims = parts(Claim)
    next_steps = parts(NextStep)
    warnings = parts(Warned)
    look = part(LookView).or_none()
    margins = part(Margins).or_none()
    aggregates = part(Aggregates)
    domains = parts(DomainRow)
    layers = parts(LayerView)
    weights = part(WeightsView).or_none()
    differences = part(Differences)
    identity = part(Identity).or_none()
    vocabulary = part(VocabularyView).or_none()
    probe = part(ProbeView)
    checkpoints = named(CheckpointFacts)
    attempts = parts(Attempt).or_none()
    yardstick = part(Yardstick).or_none()
    noise_floor = part(NoiseFloor).or_none()
    controls = part(Controls).or_none()
    method = part(Method)
    environment = mapping()
    timing = part(Timing)
    parent = part(Parent).or_none()
    evidence = part(Evidence)

    @property
    def is_baseline(self) -> bool:
        """Whether it records one checkpoint and tests nothing."""
        return self.kind == "baseline"

    @property
    def is_look(self) -> bool:
        """Whether it compares a pair and judges nothing."""
        return self.kind == LOOK

    def checkpoint(self, side: str) -> CheckpointFacts:
        """Return one checkpoint; one without facts where the receipt has none of that side."""
        return self.checkpoints.get(side) or CheckpointFacts({}, self.at(f"checkpoints.{side}"))

    def domains_of(self, role: str) -> list[DomainRow]:
        """Return the domains of one role."""
        return [row for row in self.domains if row.role == role]

    @property
    def protected(self) -> list[LayerView]:
        """The measured layers that are protected."""
        numbers = self.probe.protected_layers
        return [layer for layer in self.layers if layer.layer in numbers]
