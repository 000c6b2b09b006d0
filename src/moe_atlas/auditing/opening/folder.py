"""What stands in a checkpoint's folder beside its tensors, looked at before an audit and again after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_atlas.auditing.opening.tokenizer_check import Held, hold_tokenizer
from moe_atlas.checkpoint.config_keys import flat
from moe_atlas.checkpoint.side_files import SideFile, file_facts
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.probes.registration import ProbeSet


@dataclass(frozen=True)
class Folder:
    """The configuration, the files beside the weights, and how the tokenizer among them numbers the probe.

    Attributes:
        checkpoint: whose folder it is.
        files: every file beside the weights.
        tokenizer: what came of holding its tokenizer against the registered one.
    """

    checkpoint: TensorSource
    files: list[SideFile]
    tokenizer: Held

    @classmethod
    def of(cls, probes: ProbeSet, checkpoint: TensorSource, *, tuned: bool) -> Folder:
        """Look into a checkpoint's folder.

        Raises:
            InputRefused: E_PROBE_TOKENIZER, as `hold_tokenizer`.
        """
        return cls(checkpoint, checkpoint.beside(), hold_tokenizer(probes, checkpoint, tuned=tuned))

    def require_unchanged(self) -> None:
        """Raise ``E_CHANGED`` when a file that a server may act on is no longer the one that was listed."""
        self.checkpoint.require_unchanged_beside(self.files)

    def facts(self) -> dict[str, Any]:
        """What the receipt keeps of it."""
        return {
            "config": flat(self.checkpoint.config),
            "files": file_facts(self.files),
            "tokenizer": self.tokenizer.describe(),
        }
