"""The table of report formats. A new format is a module and one entry here."""

from __future__ import annotations

from collections.abc import Mapping

from moe_atlas.report.formats import html_page, json_object, junit, markdown
from moe_atlas.report.formats.interface import Format, FormatName

FORMATS: Mapping[FormatName, Format] = {
    FormatName.JSON: json_object,
    FormatName.MARKDOWN: markdown,
    FormatName.JUNIT: junit,
    FormatName.HTML: html_page,
}

SUFFIXES: Mapping[str, FormatName] = {
    ".json": FormatName.JSON,
    ".md": FormatName.MARKDOWN,
    ".xml": FormatName.JUNIT,
    ".html": FormatName.HTML,
    ".htm": FormatName.HTML,
}
