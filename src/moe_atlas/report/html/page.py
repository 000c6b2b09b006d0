"""The page of one receipt."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moe_atlas.report import figures, words
from moe_atlas.report.head import because, conditions, head, losses, reasons
from moe_atlas.report.html import domains, evidence, heat, ledger_tables, method, occupancy
from moe_atlas.report.html.charts import curves, damage, health
from moe_atlas.report.html.charts.documents import Arrays, by_domain
from moe_atlas.report.html.errata import ERRATA
from moe_atlas.report.sentences import sentences
from moe_atlas.text import shown
from moe_atlas.version import __version__
from moe_atlas.views.receipt import ReceiptView

SYMBOLS = {"pass": "✓", "fail": "✗", "inconclusive": "?", None: "●"}
NAMED = 6  # gates that a notebook names
CLASSES = {"pass": "pass", "fail": "fail", "inconclusive": "undetermined", None: "neutral"}


@cache
def environment() -> Environment:
    """The templates: everything escaped, nothing undefined, names from files inert."""
    made = Environment(
        loader=PackageLoader("moe_atlas.report", "html/templates"),
        autoescape=True,
        undefined=StrictUndefined,
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


def audit_page(receipt: ReceiptView, path: Path, windows: Arrays | None = None) -> str:
    """A receipt, audit or baseline, as one HTML page.

    Args:
        receipt: a receipt that verifies.
        path: its name, to be shown.
        windows: its window data, from which each document's change of loss is drawn; None leaves the drawing out.
    """
    context = {"receipt": receipt, "path": path, "unit": figures.unit(receipt)}
    context |= _top(receipt) | _tables(receipt) | _charts(receipt, windows)
    return environment().get_template("audit.html.j2").render(context)


def _top(receipt: ReceiptView) -> dict[str, Any]:
    """The verdict, a sentence for each predicate, the damage, why, and what to do."""
    return {
        "verdict": words.verdict(receipt),
        "symbol": SYMBOLS[receipt.verdict],
        "tone": CLASSES[receipt.verdict],
        "sentences": [one._asdict() | {"symbol": words.SYMBOLS[one.result]} for one in sentences(receipt)],
        "top": domains.worst_first(receipt),
        "names": words.names(receipt),
        "sample": words.sample(receipt),
        "started": receipt.timing.started or words.NOT_RECORDED,
        "head": [said.line for said in (*because(receipt), *losses(receipt))],
        "reasons": list(reasons(receipt)),
        "conditions": list(conditions(receipt)),
        "steps": [words.next_step(step) for step in receipt.next_steps],
    }


def _tables(receipt: ReceiptView) -> dict[str, Any]:
    """The rows of every table; a baseline has none that compares."""
    audit = not receipt.is_baseline
    return {
        "predicates": evidence.predicates(receipt) if audit else [],
        "heat": heat.heat_map(receipt) if audit else None,
        "domains": domains.domains(receipt),
        "health": {"headings": list(occupancy.HEALTH.values()), "rows": occupancy.health(receipt)},
        "shifts": occupancy.shifts(receipt),
        "experts": list(occupancy.named_experts(receipt)),
        "weights": ledger_tables.weights(receipt),
        "vocabulary": ledger_tables.vocabulary(receipt),
        "claims": evidence.claims(receipt),
        "lifecycle": method.lifecycle(receipt),
        "checkpoints": method.checkpoints(receipt),
        "settings": method.settings(receipt),
        "digests": method.digests(receipt),
        "errata": ERRATA,
        "immersion": method.immersion(receipt),
        "floor": method.floor(receipt),
    }


def _charts(receipt: ReceiptView, windows: Arrays | None) -> dict[str, Any]:
    """Every drawing; None for what was not measured."""
    layers, policy, unit = receipt.layers, receipt.probe.policy, figures.unit(receipt)
    found = {
        "entropy_chart": health.by_layer(
            layers, "load_entropy", "load entropy, nats", policy.budget("entropy_drop")
        ),
        "overlap_chart": health.by_layer(
            layers, "overlap", "overlap (State2)", policy.budget("overlap_drop")
        ),
        "margin_chart": health.margins(layers, method.floor_deltas(receipt)),
    }
    if receipt.is_baseline:
        return found | {"curves": [], "damage_chart": None, "document_chart": None, "share_chart": None}
    documents = list(by_domain(receipt, windows))
    return found | {
        "curves": curves.curves(receipt) if len(layers) > heat.CELLS_UP_TO else [],
        "damage_chart": damage.domains(receipt.domains, policy.margin("nll"), unit),
        "document_chart": damage.documents(documents, policy.margin("document_nll"), unit),
        "share_chart": health.shares(layers),
    }


def notebook(receipt: ReceiptView, path: Path) -> str:
    """A receipt as a fragment for a notebook: the verdict, why, the outcomes."""
    context = {
        "path": path,
        "verdict": words.verdict(receipt),
        "symbol": SYMBOLS[receipt.verdict],
        "names": words.names(receipt),
        "sample": words.sample(receipt),
        "reasons": [said.line for said in head(receipt, NAMED)],
        "predicates": evidence.predicates(receipt) if not receipt.is_baseline else [],
    }
    return environment().get_template("notebook.html.j2").render(context)
