"""Audit a pair of Mixture-of-Experts checkpoints: is the tuned one still the same routed object?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_atlas.version import __version__

if TYPE_CHECKING:
    from moe_atlas.api import AuditOptions, Receipt, audit, baseline, quick

__all__ = ["AuditOptions", "Receipt", "__version__", "audit", "baseline", "quick"]


def __getattr__(name: str) -> Any:
    """Load the interface on first use, so that importing a part of the package stays cheap."""
    if name in __all__:
        return getattr(import_module("moe_atlas.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
