"""Format a command's help, with arguments under the names of its usage line."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand


def _row(name: str, text: str) -> tuple[str, str]:
    """Return an option and its sentence; the allowed values come before the sentence, Python types are left out."""
    found = re.search(r" [<\[](?:list\[)?([^<>\[\]]*\|[^<>\[\]]*)[\]>]+$", name)
    if found is not None:
        return name[: found.start()], f"{', '.join(found[1].split('|'))}: {text}"
    return re.sub(r" <.*>$", "", name), text


class Command(TyperCommand):
    """A command whose help shows an argument as `BASE`, not as `{BASE}` or `BASE <path>`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options, each as a name and a sentence."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            records = [p.get_help_record(ctx) for p in self.get_params(ctx) if p.param_type_name == kind]
            rows = [_row(name, text) for name, text in filter(None, records)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
