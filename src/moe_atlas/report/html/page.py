"""The page of one receipt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from jinja2.utils import missing
from markupsafe import Markup

from moe_atlas.channels import DRIFTS
from moe_atlas.report import words
from moe_atlas.report.head import because, conditions, head, losses, reasons
from moe_atlas.report.html import charts, heat, tables
from moe_atlas.report.html.errata import ERRATA
from moe_atlas.text import number, shown
from moe_atlas.version import __version__

SYMBOLS = {"pass": "✓", "fail": "✗", "inconclusive": "?", None: "●"}
NAMED = 6  # gates that a notebook names
CLASSES = {"pass": "pass", "fail": "fail", "inconclusive": "undetermined", None: "neutral"}


class LacksFact(UndefinedError, KeyError):
    """A template read what a receipt lacks: the KeyError that it would be anywhere else."""


class Missing(StrictUndefined):
    """Whatever is read and is not there."""

    def __init__(self, hint: str | None = None, obj: Any = missing, name: str | None = None, exc: Any = None):
        super().__init__(hint, obj, name, exc or LacksFact)


@cache
def environment() -> Environment:
    """The templates: everything escaped, nothing undefined, names from files inert."""
    made = Environment(
        loader=PackageLoader("moe_atlas.report", "html/templates"),
        autoescape=True,
        undefined=Missing,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["shown"] = lambda value, limit=300: shown(str(value), limit)
    made.globals["version"] = __version__
    return made


def _inert(value: Any) -> Any:
    """What every expression of a template passes through before it is escaped."""
    return shown(value, 4096) if isinstance(value, str) and not isinstance(value, Markup) else value


def audit_page(receipt: Mapping[str, Any], path: Path) -> str:
    """A receipt, audit or baseline, as one HTML page.

    Args:
        receipt: a receipt that verifies.
        path: its name, to be shown.
    """
    audit = receipt["kind"] == "audit"
    layers, policy = receipt["layers"], receipt["probe"]["policy"]
    context = {
        "receipt": receipt,
        "path": path,
        "verdict": words.verdict(receipt),
        "symbol": SYMBOLS[receipt["verdict"]],
        "tone": CLASSES[receipt["verdict"]],
        "names": words.names(receipt),
        "sample": words.sample(receipt),
        "head": [said.line for said in (*because(receipt), *losses(receipt))],
        "reasons": [said.line for said in reasons(receipt)],
        "conditions": [said.line for said in conditions(receipt)],
        "steps": [words.next_step(step) for step in receipt["next_steps"]],
        "predicates": tables.predicates(receipt) if audit else [],
        "heat": heat.heat_map(receipt) if audit else None,
        "domains": tables.domains(receipt),
        "health": {"headings": list(tables.HEALTH.values()), "rows": tables.health(receipt)},
        "shifts": tables.shifts(receipt),
        "experts": list(tables.named_experts(receipt)),
        "weights": tables.weights(receipt),
        "vocabulary": tables.vocabulary(receipt),
        "claims": tables.claims(receipt),
        "lifecycle": tables.lifecycle(receipt),
        "checkpoints": tables.checkpoints(receipt),
        "settings": tables.settings(receipt),
        "digests": tables.digests(receipt),
        "errata": ERRATA,
        "immersion": _immersion(receipt),
        "floor": _floor(receipt),
        "damage_chart": charts.damage(receipt["domains"], policy["damage"].get("nll")) if audit else None,
        "entropy_chart": charts.by_layer(layers, "load_entropy", "load entropy, nats"),
        "overlap_chart": charts.by_layer(layers, "overlap", "overlap (State2)"),
        "share_chart": charts.shares(layers) if audit else None,
        "margin_chart": charts.margins(layers, _deltas(receipt)),
    }
    return environment().get_template("audit.html.j2").render(context)


def notebook(receipt: Mapping[str, Any], path: Path) -> str:
    """A receipt as a fragment for a notebook: the verdict, why, the outcomes."""
    context = {
        "path": path,
        "verdict": words.verdict(receipt),
        "symbol": SYMBOLS[receipt["verdict"]],
        "names": words.names(receipt),
        "sample": words.sample(receipt),
        "reasons": [said.line for said in head(receipt, NAMED)],
        "predicates": tables.predicates(receipt) if receipt["kind"] == "audit" else [],
    }
    return environment().get_template("notebook.html.j2").render(context)


def _deltas(receipt: Mapping[str, Any]) -> dict[int, float]:
    floor = receipt.get("noise_floor") or {}
    return {row["layer"]: float(row["delta"]) for row in floor.get("layers", [])}


def _floor(receipt: Mapping[str, Any]) -> dict[str, Any] | None:
    """The noise floor in a line: the largest of every channel, and of the change of NLL."""
    floor = receipt.get("noise_floor")
    if not floor:
        return None
    columns = (*(channel.key for channel in DRIFTS), "delta")
    largest = {
        key.replace("_", " "): number(max((row.get(key) or 0.0 for row in floor["layers"]), default=0.0))
        for key in columns
    }
    return {"execution": floor["execution"], "largest": largest, "nll": number(floor["largest_nll_change"])}


def _immersion(receipt: Mapping[str, Any]) -> tuple[int, int]:
    """Routed layers of the base to which the immersion theorem does not apply, of how many."""
    found = [(layer.get("assumptions") or {}).get("base") or {} for layer in receipt["layers"]]
    return sum(one.get("rank_possible") is False for one in found), len(found)
