"""An explanation as one page without scripts: everything from files is escaped."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from moe_atlas.explanation.charts import distribution
from moe_atlas.explanation.documents import DomainDamage
from moe_atlas.explanation.explain import Explanation
from moe_atlas.explanation.passages import Passage, Shaded, level
from moe_atlas.explanation.sentences import NO_INTERVALS, TEXT_INSIDE, percent, signed, summary, worst_pieces
from moe_atlas.explanation.text import visible
from moe_atlas.report import words
from moe_atlas.report.figures import unit
from moe_atlas.report.html.page import environment
from moe_atlas.text import number

LENGTH = 400  # tokens of a passage
QUARTERS = 4  # steps in which a line shows the share of layers


def page(explanation: Explanation) -> str:
    """Return the page of an explanation."""
    context: dict[str, Any] = {
        "path": explanation.path,
        "names": words.names(explanation.receipt),
        "warning": TEXT_INSIDE,
        "note": NO_INTERVALS,
        "sentences": list(summary(explanation)),
        "has_tokens": explanation.has_tokens,
        "unit": unit(explanation.receipt),
        "chart": distribution(explanation.domains, unit(explanation.receipt)),
        "domains": [_domain(domain, explanation.worst) for domain in explanation.domains if domain.documents],
        "passages": [
            {"domain": name, "passages": [_passage(one, explanation) for one in found]}
            for name, found in explanation.passages.items()
            if found
        ],
        "darkest": number(explanation.darkest),
        "layers": len(explanation.flows),
        "categories": [
            {"domain": name, "rows": [_category(one) for one in found]}
            for name, found in explanation.categories.items()
            if found
        ],
        "flows": [_layer(layer) for layer in explanation.flows],
    }
    return environment().get_template("explain.html.j2").render(context)


def _domain(domain: DomainDamage, most: int) -> dict[str, Any]:
    rows = [
        {
            "name": document.name,
            "windows": len(document.windows),
            "base": number(document.base),
            "tuned": number(document.tuned),
            "increase": signed(document.increase),
            "replaced": "–" if document.replaced is None else percent(document.replaced),
        }
        for document in domain.worse[:most]
    ]
    found = {"name": domain.name, "role": domain.role, "rows": rows, "documents": len(domain.documents)}
    return found | {"worse": len(domain.worse)}


def _passage(passage: Passage, explanation: Explanation) -> dict[str, Any]:
    return {
        "document": passage.document,
        "window": passage.window,
        "windows": passage.windows,
        "first": passage.first,
        "behind": passage.behind,
        "worst": worst_pieces(passage),
        "text": Markup("").join(_span(piece, explanation) for piece in passage.pieces),
    }


def _span(piece: Shaded, explanation: Explanation) -> Markup:
    """Return one piece, shaded and named; its text is escaped twice, for a screen and for HTML."""
    shade, lines = level(piece.increase, explanation.darkest), _lines(piece, explanation)
    classes = [
        *([f"{'w' if shade > 0 else 'b'}{abs(shade)}"] if shade else []),
        *([f"m{lines}"] if lines else []),
    ]
    if not classes:
        return Markup("<span>{}</span>").format(visible(piece.text))
    said = _said(piece, len(explanation.flows))
    return Markup('<span class="{}" title="{}">{}</span>').format(
        " ".join(classes), said, Markup(escape(visible(piece.text)))
    )


def _lines(piece: Shaded, explanation: Explanation) -> int:
    """Return how strongly a piece is underlined: 1 to 4, by the share of layers; 0 if no route changed."""
    if not piece.moved:
        return 0
    return -(-QUARTERS * piece.moved // len(explanation.flows))


def _said(piece: Shaded, layers: int) -> str:
    routes = f"routes changed in {piece.moved} of {layers} layers"
    if piece.increase is None or piece.base is None:
        return f"not scored; {routes}"
    tuned = number(piece.base + piece.increase)
    return f"loss {number(piece.base)} → {tuned} ({signed(piece.increase)}); {routes}"


def _category(category: Any) -> dict[str, Any]:
    return {
        "grouping": category.grouping,
        "name": category.name,
        "tokens": category.tokens,
        "base": number(category.base),
        "increase": signed(category.increase),
        "share": "–" if category.share is None else percent(category.share),
        "moved": percent(category.moved),
    }


def _layer(layer: Any) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "protected": layer.protected,
        "changed": percent(layer.changed),
        "replaced": percent(layer.replaced),
        "pairs": layer.pairs,
        "largest": [
            {"lost": f.lost, "gained": f.gained, "tokens": f.tokens, "share": percent(f.tokens / f.of)}
            for f in layer.largest
        ],
    }
