"""One JSON object: what a pipeline needs of a receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_atlas.errors import AtlasError
from moe_atlas.report.summary import error_summary, summary
from moe_atlas.views.receipt import ReceiptView


def render(receipt: ReceiptView, path: Path) -> str:
    """Return the summary of a receipt as JSON."""
    return _text(summary(receipt, path))


def render_error(error: AtlasError) -> str:
    """Return an error as JSON."""
    return _text(error_summary(error))


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"
