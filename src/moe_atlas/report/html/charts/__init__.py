"""The charts of a page, drawn by matplotlib as SVG in the colours of the page's theme."""
