"""The ledger of a run: its baselines, audits, resumes and registrations, in an order that nobody can edit unnoticed."""

from moe_atlas.ledger.chain import Entry, Head
from moe_atlas.ledger.store import Ledger, Snapshot

__all__ = ["Entry", "Head", "Ledger", "Snapshot"]
