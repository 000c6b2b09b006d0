"""The ledger of a run: its baselines, audits, resumes and registrations, in an order nobody can edit."""

from moe_atlas.ledger.chain import Entry, Head
from moe_atlas.ledger.store import Ledger, Snapshot

__all__ = ["Entry", "Head", "Ledger", "Snapshot"]
