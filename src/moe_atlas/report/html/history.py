"""The page of a run: its gates over time, with what happened between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_atlas.report.html.charts import svg
from moe_atlas.report.html.charts.scales import span
from moe_atlas.report.html.page import environment
from moe_atlas.text import number
from moe_atlas.verdict.qualifications import in_words, marked

if TYPE_CHECKING:
    from moe_atlas.ledger.history import History

# Colour is never alone: every reading has a shape and a word as well.
MARKERS = {
    "GREEN": (svg.PASS, "o", "✓"),
    "YELLOW": (svg.OPEN, "^", "!"),
    "RED": (svg.FAIL, "X", "✗"),
    None: (svg.BASE, "D", "◇"),
}


class Figure(NamedTuple):
    """A figure of every gate.

    Attributes:
        label: the figure in words, with its unit.
        budget: what of an entry's body tells the budget of its change; empty for none.
        least: share of its level that the axis spans at least, where no budget says what matters.
    """

    label: str
    budget: str = ""
    least: float = 0.1


PANELS = {
    "base_nll": Figure("NLL of the base domains", "margin"),
    "nll": Figure("NLL of the objective", "margin"),
    "overlap": Figure("overlap (State2)", "overlap_drop"),
    "set_margin": Figure("set margin (State1)"),
    "dead_experts": Figure("dead experts", "dead_share_rise"),
    "min_entropy": Figure("min load entropy, nats", "entropy_drop"),
    "load_cv": Figure("load CV", "load_cv_rise"),
}
"""The figures of the history: loss before geometry."""
TICKS = 8
EVENTS = {"resume": "resume", "registration": "registered", "repair": "repair"}


def history_page(history: History) -> str:
    """A run's history as one HTML page."""
    facts = history.describe()
    entries: list[dict[str, Any]] = facts["entries"]
    last = history.last
    context = {
        "run": facts["run"],
        "facts": facts,
        "last": last,
        "state": in_words(facts["state"], facts["qualified"]),
        "symbol": MARKERS[last.colour][2] if last else "◇",
        "tone": (last.colour if last else None) or "neutral",
        "chart": _chart(entries),
        "rows": [_row(entry) for entry in entries],
        "panels": [figure.label for figure in PANELS.values()],
    }
    return environment().get_template("history.html.j2").render(context)


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    reading, body = entry["reading"], entry["body"]
    colour = reading["colour"] if reading else None
    return {
        "seq": entry["seq"],
        "time": entry["time"][:16].replace("T", " "),
        "kind": entry["kind"],
        "step": "–" if body.get("step") is None else body["step"],
        "verdict": marked(body.get("verdict") or "–", body.get("qualified") or ()),
        "colour": colour or "neutral",
        "symbol": MARKERS[colour][2] if reading else "",
        "word": f"{colour or entry['kind']}: {reading['state']}" if reading else "",
        "figures": [number(_value(entry, key)) if reading else "" for key in PANELS],
        "note": "; ".join(entry["notes"]),
    }


def _chart(entries: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Every figure over the ledger's entries, every gate in its colour and shape, events as vertical lines."""
    gates = [entry for entry in entries if entry["reading"]]
    if not gates:
        return None
    with svg.styled():
        figure, plots = svg.axes(1.15 * len(PANELS) + 0.6, rows=len(PANELS))
        for plot, (key, shown) in zip(plots, PANELS.items(), strict=True):
            _panel(plot, gates, key)
            plot.set_title(shown.label, fontsize=10, loc="left", pad=3)
            plot.yaxis.set_major_locator(MaxNLocator(3))
            for entry in entries:
                if entry["kind"] in EVENTS:
                    plot.axvline(entry["seq"], color=svg.MUTED, linewidth=0.8, linestyle=":")
        _named_events(plots[0], entries)
        plots[-1].set_xlabel("ledger entry (training step)")
        plots[-1].set_xticks(*_ticks(gates))
        handles = [plots[0].plot([], [], marker, color=colour, linestyle="none", label=name or "baseline")[0]
                   for name, (colour, marker, _) in MARKERS.items()]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=10)
        said = "; ".join(
            f"entry {e['seq']} {e['reading']['colour'] or 'baseline'} {e['reading']['state']}" for e in gates
        )
        return svg.inline(figure, "gates", "Gates over time", f"{said}. The table below holds every figure.")


def _panel(plot: Axes, gates: Sequence[Mapping[str, Any]], key: str) -> None:
    """One figure over the gates: its interval where the entry holds it, its value in the gate's colour and shape."""
    known = [(entry, value) for entry in gates if (value := _value(entry, key)) is not None]
    if not known:
        return
    plot.plot(
        [entry["seq"] for entry, _ in known], [value for _, value in known], color=svg.LINE, linewidth=1
    )
    reached = []
    for entry, value in known:
        ink, marker, _ = MARKERS[entry["reading"]["colour"]]
        face = "none" if entry["reading"]["colour"] is None else ink
        low, high = (entry["body"].get("bounds") or {}).get(key) or (value, value)
        plot.plot([entry["seq"]] * 2, [low, high], color=ink, linewidth=1.4, alpha=0.6)
        plot.plot([entry["seq"]], [value], marker, color=ink, markerfacecolor=face, markersize=5)
        reached += [low, value, high]
    plot.set_ylim(*span(min(reached), max(reached), None, _least(known[-1][0]["body"], key, known[0][1])))


def _value(entry: Mapping[str, Any], key: str) -> float | None:
    """A figure of a gate; the base domains' loss stands in the entry alone, for no rule reads it."""
    value = entry["body"].get(key) if key == "base_nll" else entry["reading"]["gate"][key]
    return None if value is None else float(value)


def _least(body: Mapping[str, Any], key: str, level: float) -> float:
    """The least span of an axis: the budget of a change, so that noise far below the budget looks like noise."""
    figure, budgets = PANELS[key], body.get("budgets") or {}
    budget = body.get("margin") if figure.budget == "margin" else budgets.get(figure.budget)
    if budget is None:
        return figure.least * abs(level)
    experts = (body.get("health") or {}).get("experts") or 1.0
    return float(budget) * (experts if key == "dead_experts" else 1.0)


def _named_events(plot: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    for entry in entries:
        if entry["kind"] in EVENTS:
            words = EVENTS[entry["kind"]]
            words = "re-registered" if entry["body"].get("predecessor") else words
            plot.annotate(
                words, (entry["seq"], 1.0), xycoords=("data", "axes fraction"), fontsize=7.5, rotation=90,
                va="top", ha="right", color=svg.MUTED,
            )  # fmt: skip


def _ticks(gates: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[str]]:
    """Places and labels of at most `TICKS` gates: the entry, and below it the training step."""
    some = gates[:: max(1, -(-len(gates) // TICKS))]
    steps = [entry["body"].get("step") for entry in some]
    places = [entry["seq"] for entry in some]
    return places, [
        str(place) if step is None else f"{place}\n({step})"
        for place, step in zip(places, steps, strict=True)
    ]
