"""The yardstick: what a 4-bit copy of the base does to every channel and to the loss."""

from __future__ import annotations

from moe_atlas.views.measured import Intervals
from moe_atlas.views.view import View, integer, part, parts, text


class Copy(View):
    """The copy: symmetric integers of so many bits; so many elements share a scale."""

    bits = integer()
    group = integer()


class CopiedLayer(Intervals):
    """What the copy does at one layer, by channel."""

    layer = integer()


class CopiedDomain(Intervals):
    """What the copy does to one domain, by change of its output."""

    name = text()
    role = text()
    documents = integer()


class Yardstick(View):
    """The base against its copy."""

    copy = part(Copy)
    layers = parts(CopiedLayer)
    domains = parts(CopiedDomain)
