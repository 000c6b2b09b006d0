"""The door of every report: a receipt of another form is refused before anything of it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_atlas.errors import InputRefused
from moe_atlas.receipt.schema import schema_problems
from moe_atlas.report.yardstick import with_multiples
from moe_atlas.text import shown
from moe_atlas.views.receipt import ReceiptView


def opened(receipt: Mapping[str, Any], path: Path) -> ReceiptView:
    """Return the typed view of a receipt of the documented form.

    Raises:
        InputRefused: E_REPORT, naming the first fact of another form.
    """
    problems = schema_problems(receipt)
    if problems:
        where, problem = problems[0]
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        said = f"holds facts that cannot be shown: {where or 'receipt'}: {problem}{more}"
        hint = "its verdict stands if atlas verify says so; report it with the version that wrote it"
        raise InputRefused("E_REPORT", shown(str(path)), said, hint)
    return ReceiptView(with_multiples(receipt))
