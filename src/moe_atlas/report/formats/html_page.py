"""The HTML page of a receipt; matplotlib is imported only to draw it."""

from __future__ import annotations

from pathlib import Path

from moe_atlas.errors import AtlasError
from moe_atlas.views.receipt import ReceiptView


def render(receipt: ReceiptView, path: Path) -> str:
    """Return the page of a receipt."""
    from moe_atlas.report.html import audit_page
    from moe_atlas.report.html.charts.documents import windows_beside

    return audit_page(receipt, path, windows_beside(receipt, path))


def render_error(error: AtlasError) -> None:
    """Return None: an error has no page."""
