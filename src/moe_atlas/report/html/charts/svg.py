"""From a matplotlib figure to SVG inside a page: coloured by the page's theme, named for screen readers.

Figures are drawn in stand-in colours that are replaced by CSS variables; text stays text. Identifiers get a
prefix of their own, since a page holds many figures.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_atlas.text import shown

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
INK, MUTED, LINE, BASE, TUNED, FAIL, OPEN, PASS, MEASURED = (f"#00000{digit}" for digit in range(1, 10))
VARIABLES = dict(
    zip(
        (INK, MUTED, LINE, BASE, TUNED, FAIL, OPEN, PASS, MEASURED),
        ("ink", "muted", "line", "base", "tuned", "fail", "open", "pass", "measured"),
        strict=True,
    )
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",
    "text.parse_math": False,  # a domain may be called "$x$"
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WIDTH = 5.4  # inches: 389 points, so that a phone shows the lettering at about the size it was drawn in


def axes(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes below each other; call it inside `styled`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    made = figure.subplots(rows, 1, sharex=True, squeeze=False)
    for one in made[:, 0]:
        one.set_axisbelow(True)
    return figure, list(made[:, 0])


def styled() -> Any:
    """The drawing style, as a context manager; nothing of matplotlib's global state outlives it."""
    return rc_context(STYLE)


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
        figure: drawn inside `styled`.
        name: unique on the page; letters, digits and dashes.
        title: what it shows.
        description: what it says, in a sentence: the text alternative.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the fonts, matplotlib need not
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(stream.getvalue())
    _prune(root)
    _prefix(root, name)
    root.attrib.pop("width"), root.attrib.pop("height")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    root.insert(0, _text("desc", f"{name}-desc", description))
    root.insert(0, _text("title", f"{name}-title", title))
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704  # serialised, hence escaped, by ElementTree


def _text(tag: str, identifier: str, text: str) -> ET.Element:
    element = ET.Element(f"{{{SVG}}}{tag}", {"id": identifier})
    element.text = shown(text, 2000)
    return element


def _prune(root: ET.Element) -> None:
    """Drop what would leak into the page: metadata and the style sheet that matplotlib puts into ``defs``."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)


def _prefix(root: ET.Element, name: str) -> None:
    """Give identifiers the figure's name, and stand-in colours their variables."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            else:
                value = re.sub(r"url\(#", f"url(#{name}-", value)
                value = re.sub(r"#00000[1-9]\b", lambda match: f"var(--{VARIABLES[match[0]]})", value)
            element.set(key, value)
