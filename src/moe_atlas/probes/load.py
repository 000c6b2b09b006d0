"""Read the text of a probe file into a `ProbeConfig` and check every key, type and range."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from moe_atlas.channels import BUDGETS, CHANNEL, GATED, GUARDS
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.governed import governed
from moe_atlas.probes.reading.bounded_files import read_bounded
from moe_atlas.probes.reading.collect import attempt, note, together, whole
from moe_atlas.probes.reading.fields import Fields, Span
from moe_atlas.probes.reading.strict_yaml import MAX_BYTES, Mapping, Node, parse
from moe_atlas.probes.settings.central import CentralPolicy, load_central
from moe_atlas.probes.settings.policy import (
    ALLOWANCES,
    DAMAGE_STAGE,
    EXPANSIVE_STAGE,
    STAGES,
    TENSOR_CLASSES,
    UNREGISTERED,
    Damage,
    FromBase,
    Handoff,
    Policy,
    Refinement,
    Rewrite,
    SetFor,
    Smooth,
    WeightRules,
)
from moe_atlas.probes.settings.protected_layers import read_layers
from moe_atlas.probes.settings.schema import (
    EXPERT_SETS,
    METRICS,
    ROLES,
    ROWS,
    SCHEMA,
    SHORTER,
    SPECIAL_TOKENS,
    Domain,
    Evaluation,
    ProbeConfig,
    Success,
    WindowsConfig,
)
from moe_atlas.text import not_there, quoted

_SHARE = Span(0, 1, open_low=True)
_POSITIVE = Span(0, open_low=True)
_EMPTY = Mapping({}, {}, 0)


_Block = TypeVar("_Block")


def load_probes(path: Path, policy_from: Path | None = None) -> ProbeConfig:
    """Read a probe file without opening its sources.

    Args:
        path: the probe file.
        policy_from: a central policy file that governs it.

    Raises:
        UsageError: E_PROBE_MISSING, E_POLICY_MISSING when there is no such file.
        InputRefused: E_PROBE_FILE (not a regular file, too long), E_PROBE_YAML, E_PROBE_KEY, E_PROBE_VALUE;
            E_POLICY when the probe file contradicts the central policy.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(
            "E_PROBE_MISSING",
            str(path),
            not_there(path, "there is no such probe file"),
            "write one with: atlas init",
        )
    central = None if policy_from is None else load_central(Path(policy_from))
    return read_probes(read_bounded(path, MAX_BYTES, "E_PROBE_FILE"), path, central)


def read_probes(text: bytes, path: Path, central: CentralPolicy | None = None) -> ProbeConfig:
    """Read a probe file's text; `path` names it and anchors its sources.

    Raises:
        InputRefused: as `load_probes`; one refusal holds every error of the file.
    """
    file = path.name
    root = parse(text, file)
    with together():
        return _config(Fields(root, "", file, _KEYS), path, central)


_KEYS = (
    *("schema", "name", "tokenizer", "special_tokens", "chat_template", "windows", "evaluation"),
    *("protected_layers", "domains", "policy"),
)


def _config(fields: Fields, path: Path, central: CentralPolicy | None) -> ProbeConfig:
    fields.text("schema", (SCHEMA,))
    domains = attempt(lambda: _domains(fields, fields.file)) or ()
    return ProbeConfig(
        path=path,
        name=fields.text("name"),
        tokenizer=_optional(fields, "tokenizer"),
        special_tokens=_optional(fields, "special_tokens", SPECIAL_TOKENS) or SPECIAL_TOKENS[0],
        chat_template=_optional(fields, "chat_template"),
        windows=attempt(lambda: _windows(fields.get("windows"), fields.file)),
        evaluation=attempt(lambda: governed(fields, "evaluation", central, _evaluation, _EMPTY)),
        protected_layers=attempt(lambda: governed(fields, "protected_layers", central, read_layers)),
        domains=domains,
        policy=attempt(lambda: _governed_policy(fields, central, domains)),
        central=central,
    )


def _governed_policy(fields: Fields, central: CentralPolicy | None, domains: tuple[Domain, ...]) -> Policy:
    if central is None:
        fields.require("policy", "add the key policy, or name the file that holds it: --policy-from FILE")
    return governed(fields, "policy", central, lambda node, at: _policy(node, at, domains))


def _optional(fields: Fields, key: str, allowed: tuple[str, ...] = ()) -> str | None:
    return None if fields.is_null(key) else fields.text(key, allowed)


def _block(fields: Fields, key: str) -> Node:
    """Return the node of an optional block; an absent block is empty and so takes all defaults."""
    return _EMPTY if fields.is_null(key) else fields.get(key)


def _windows(node: Node, file: str) -> WindowsConfig:
    fields = Fields(node, "windows", file, ("tokens", "per_document", "seed"))
    return WindowsConfig(
        tokens=fields.integer("tokens", 2, 1 << 20),
        per_document=fields.integer("per_document", 1, 1024) if fields.has("per_document") else 1,
        seed=fields.integer("seed", 0, (1 << 63) - 1) if fields.has("seed") else 0,
    )


def _evaluation(node: Node, file: str) -> Evaluation:
    fields = Fields(node, "evaluation", file, ("experts", "token_stride", "quantile"))
    return Evaluation(
        experts=fields.text("experts", EXPERT_SETS) if fields.has("experts") else "active",
        token_stride=fields.integer("token_stride", 1, 1 << 20) if fields.has("token_stride") else 1,
        quantile=fields.number("quantile", _SHARE) if fields.has("quantile") else 0.9,
    )


def _domains(fields: Fields, file: str) -> tuple[Domain, ...]:
    nodes = fields.items("domains")
    domains = whole(
        lambda: tuple(attempt(partial(_domain, node, f"domains[{n}]", file)) for n, node in enumerate(nodes))
    )
    first: dict[str, str] = {}
    for domain, node in zip(domains, nodes, strict=True):
        if domain.name in first:
            fields.refuse(node.line, f"domain name {quoted(domain.name)} is taken, see {first[domain.name]}")
        first[domain.name] = domain.where
    if not any(domain.role == "base" for domain in domains):
        fields.refuse(
            fields.line_of("domains"), "domains needs at least one of role base", "nothing would be guarded"
        )
    return domains


def _domain(node: Node, name: str, file: str) -> Domain:
    known = ("name", "role", "source", "rows", "documents", "shorter", "max_nll_increase", "success")
    fields = Fields(node, name, file, known)
    role = fields.text("role", ROLES)
    for key, owner in (("max_nll_increase", "canary"), ("success", "task")):
        if fields.has(key) and role != owner:
            fields.refuse(
                fields.line_of(key), f"{fields.path(key)} belongs to role {owner}, this domain is {role}"
            )
    return Domain(
        name=fields.text("name"),
        role=role,
        source=fields.text("source"),
        rows=_optional(fields, "rows", ROWS),
        documents=None if fields.is_null("documents") else fields.integer("documents", 1, 10_000_000),
        shorter=_optional(fields, "shorter", SHORTER) or SHORTER[0],
        max_nll_increase=fields.number("max_nll_increase", _POSITIVE) if role == "canary" else None,
        success=attempt(lambda: _success(fields.get("success"), fields.path("success"), file))
        if role == "task"
        else None,
        where=f"{file}:{node.line}",
    )


def _success(node: Node, name: str, file: str) -> Success:
    fields = Fields(node, name, file, ("metric", "at_most", "at_least", "relative_to_base"))
    metric = fields.text("metric", METRICS)
    relative = fields.flag("relative_to_base") if fields.has("relative_to_base") else False
    wanted, other = ("at_most", "at_least") if metric == "nll" else ("at_least", "at_most")
    if fields.has(other):
        fields.refuse(
            fields.line_of(other), f"{fields.path(other)} does not go with {metric}; write {wanted}"
        )
    ceiling = math.inf if metric == "nll" else 1
    limit = fields.number(wanted, Span(-ceiling if relative else 0, ceiling))
    return Success(
        metric=metric,
        at_most=limit if wanted == "at_most" else None,
        at_least=limit if wanted == "at_least" else None,
        relative_to_base=relative,
    )


def _policy(node: Node, file: str, domains: tuple[Domain, ...]) -> Policy:
    known = ("stage", "confidence", "resamples", "rewrite", "damage", "weights", "task", "set_for", "allow")
    fields = Fields(node, "policy", file, known)
    stage = fields.text("stage", STAGES) if fields.has("stage") else STAGES[0]
    task_none = fields.has("task") and bool(fields.text("task", ("none",)))
    if domains:  # without domains their refusal is noted already
        _check_task(fields, stage, task_none, any(domain.role == "task" for domain in domains))
    confidence = Span(0.5, 1, open_low=True, open_high=True)
    return Policy(
        stage=stage,
        confidence=fields.number("confidence", confidence) if fields.has("confidence") else 0.95,
        resamples=fields.integer("resamples", 200, 1_000_000) if fields.has("resamples") else 4000,
        rewrite=attempt(lambda: _unjudged(fields) if stage == DAMAGE_STAGE else _rewrite(fields)),
        damage=attempt(lambda: _damage(fields.get("damage"), file)),
        weights=attempt(lambda: _weights(_block(fields, "weights"), file)),
        task_none=task_none,
        set_for=attempt(lambda: _set_for(_block(fields, "set_for"), file)),
        allow=attempt(lambda: _allowed(fields)),
    )


def _allowed(fields: Fields) -> tuple[str, ...]:
    """Return the allowances in the table's order, so that the order in the file does not change the policy."""
    named = fields.names("allow", tuple(ALLOWANCES), "allowance")
    return tuple(name for name in ALLOWANCES if name in named)


def _check_task(fields: Fields, stage: str, task_none: bool, has_task: bool) -> None:
    """Refuse a file whose policy and domains do not agree on whether there is a task."""
    if has_task and task_none:
        fields.refuse(fields.line_of("task"), "policy.task says none, but there is a task domain")
    if not has_task and stage == EXPANSIVE_STAGE:
        fields.refuse(
            fields.line_of("stage"), "stage knowledge-expansive needs a task domain with a success rule"
        )
    if not has_task and not task_none:
        hint = "add a domain of role task, or write task: none under policy"
        fields.refuse(fields.line, "there is no task domain and policy does not say so", hint)


_BLOCKS = ("refinement", "handoff", "smooth")


def _unjudged(policy: Fields) -> Rewrite:
    """Return the block of a stage that judges no atlas: every budget is null, whether the file writes it or not."""
    fields = Fields(_block(policy, "rewrite"), "policy.rewrite", policy.file, (*BUDGETS, *_BLOCKS))
    for key in (*BUDGETS, "refinement"):
        if not fields.is_null(key):
            problem = f"stage {DAMAGE_STAGE} judges no atlas, and {fields.path(key)} is a budget of it"
            fields.refuse(
                fields.line_of(key), problem, f"write null, leave the key out, or declare stage {STAGES[0]}"
            )
    handoff, smooth = _unless_null(fields, "handoff", _handoff), _unless_null(fields, "smooth", _smooth)
    return Rewrite(dict.fromkeys(BUDGETS), None, handoff, smooth)


def _rewrite(policy: Fields) -> Rewrite:
    file = policy.file
    fields = Fields(policy.get("rewrite"), "policy.rewrite", file, (*BUDGETS, *_BLOCKS))
    for key in (channel.budget for channel in GATED if channel.must_be_written):
        if not fields.has(key):
            hint = f"write a budget, or {key}: null to leave this channel ungated on the record"
            note(
                InputRefused(
                    "E_PROBE_VALUE", f"{file}:{fields.line}", f"policy.rewrite.{key} is missing", hint
                )
            )
    limits = {
        channel.budget: None
        if fields.is_null(channel.budget)
        else fields.number(channel.budget, Span(0, channel.range[1], open_low=True))
        for channel in GATED
    }
    for guard in GUARDS:
        if not fields.has(guard.budget):  # only a written null leaves it ungated
            made_of = limits[CHANNEL[guard.undefined_with].budget]
            limits[guard.budget] = max(guard.default or 0.0, made_of or 0.0)
    return Rewrite(
        limits,
        refinement=_unless_null(fields, "refinement", _refinement),
        handoff=_unless_null(fields, "handoff", _handoff),
        smooth=_unless_null(fields, "smooth", _smooth),
    )


def _unless_null(fields: Fields, key: str, read: Callable[[Node, str], _Block]) -> _Block | None:
    return None if fields.is_null(key) else attempt(lambda: read(fields.get(key), fields.file))


def _refinement(node: Node, file: str) -> Refinement:
    fields = Fields(node, "policy.rewrite.refinement", file, ("mu", "tau"))
    one, two, three = fields.numbers("mu", 3, Span(0))
    if one == two == three == 0:
        fields.refuse(
            fields.line_of("mu"), "policy.rewrite.refinement.mu is all zero: the margin could never fail"
        )
    return Refinement((one, two, three), fields.number("tau", _POSITIVE))


def _handoff(node: Node, file: str) -> Handoff:
    fields = Fields(node, "policy.rewrite.handoff", file, ("lambda",))
    one, two = fields.numbers("lambda", 2, Span(0))
    return Handoff((one, two))


def _smooth(node: Node, file: str) -> Smooth:
    keys = ("adjacency", "occupancy", "handoff", "refinement")
    fields = Fields(node, "policy.rewrite.smooth", file, keys)
    return Smooth(**{key: fields.number(key, _POSITIVE) for key in keys})


def _damage(node: Node, file: str) -> Damage:
    spans = {"nll": _POSITIVE, "document_nll": _POSITIVE, "document_share": Span(0, 1, True, True)}
    fields = Fields(node, "policy.damage", file, (*spans, "kl"))

    def limit(key: str, span: Span) -> float | None:
        return None if fields.has(key) and fields.is_null(key) else fields.number(key, span)

    kl = limit("kl", _POSITIVE) if fields.has("kl") else UNREGISTERED
    return Damage(kl=kl, **{key: limit(key, span) for key, span in spans.items()})


def _weights(node: Node, file: str) -> WeightRules:
    fields = Fields(node, "policy.weights", file, ("must_not_change", "must_change"))
    frozen, moved = _classes(fields, "must_not_change"), _classes(fields, "must_change")
    if both := sorted(set(frozen) & set(moved)):
        fields.refuse(fields.line, f"policy.weights asks {', '.join(both)} both to change and not to change")
    return WeightRules(frozen, moved)


def _classes(fields: Fields, key: str) -> tuple[str, ...]:
    return fields.names(key, TENSOR_CLASSES, "tensor class")


def _set_for(node: Node, file: str) -> SetFor:
    fields = Fields(node, "policy.set_for", file, ("family", "top_k", "experts", "from_base"))
    return SetFor(
        family=None if fields.is_null("family") else fields.text("family"),
        top_k=None if fields.is_null("top_k") else fields.integer("top_k", 1, 65_536),
        experts=None if fields.is_null("experts") else fields.text("experts", EXPERT_SETS),
        from_base=None if fields.is_null("from_base") else _from_base(fields.get("from_base"), file),
    )


def _from_base(node: Node, file: str) -> FromBase:
    fields = Fields(node, "policy.set_for.from_base", file, ("base", "probe", "bits", "group", "factor"))
    return FromBase(
        base=_digest(fields, "base"),
        probe=_digest(fields, "probe"),
        bits=fields.integer("bits", 2, 16),
        group=fields.integer("group", 1, 65_536),
        factor=fields.number("factor", _POSITIVE),
    )


def _digest(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        fields.refuse(fields.line_of(key), f"{fields.path(key)} must be a sha256 in hexadecimal, in quotes")
    return value
