"""The HTML report: one self-contained page that works offline, on a phone, in the dark and on paper.

Charts are drawn by matplotlib as SVG and set inline with their colours left to the page's style sheet, so that
one drawing serves both themes; there is no script and nothing to fetch. Every string reaches the page through
Jinja2's escaping.
"""

from moe_atlas.report.html.history import history_page
from moe_atlas.report.html.page import audit_page

__all__ = ["audit_page", "history_page"]
