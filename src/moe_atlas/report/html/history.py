"""The page of a run: its gates over time, with what happened between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_atlas.report.html.charts import svg
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
PANELS = {
    "overlap": "overlap (State2)",
    "set_margin": "set margin (State1)",
    "dead_experts": "dead experts",
    "min_entropy": "min load entropy",
    "load_cv": "load CV",
    "nll": "NLL, nats",
}
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
        "panels": list(PANELS.values()),
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
        "figures": [number(reading["gate"][key]) if reading else "" for key in PANELS],
        "note": "; ".join(entry["notes"]),
    }


def _chart(entries: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Six figures over the ledger's entries, every gate in its colour and shape, events as vertical lines."""
    gates = [entry for entry in entries if entry["reading"]]
    if not gates:
        return None
    with svg.styled():
        figure, plots = svg.axes(1.15 * len(PANELS) + 0.6, rows=len(PANELS))
        for plot, (key, label) in zip(plots, PANELS.items(), strict=True):
            _panel(plot, gates, key)
            plot.set_title(label, fontsize=10, loc="left", pad=3)
            plot.yaxis.set_major_locator(MaxNLocator(3))
            plot.margins(y=0.15)
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
    known = [(e["seq"], e["reading"]["gate"][key], e["reading"]["colour"]) for e in gates]
    known = [point for point in known if point[1] is not None]
    plot.plot([x for x, _, _ in known], [y for _, y, _ in known], color=svg.LINE, linewidth=1)
    for x, y, colour in known:
        ink, marker, _ = MARKERS[colour]
        face = "none" if colour is None else ink
        plot.plot([x], [y], marker, color=ink, markerfacecolor=face, markersize=5)


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
