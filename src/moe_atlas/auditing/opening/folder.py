"""The files beside a checkpoint's tensors, checked before and after an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_atlas.auditing.opening.tokenizer_check import TokenizerCheck, check_tokenizer
from moe_atlas.checkpoint.config_keys import flat
from moe_atlas.checkpoint.side_files import SideFile, file_facts
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.probes.registration import ProbeSet


@dataclass(frozen=True)
class Folder:
    """The configuration and the files beside the weights of one checkpoint.

    Attributes:
        checkpoint: the opened checkpoint.
        files: every file beside the weights.
        tokenizer: comparison of its tokenizer with the registered tokenizer.
    """

    checkpoint: TensorSource
    files: list[SideFile]
    tokenizer: TokenizerCheck

    @classmethod
    def of(cls, probes: ProbeSet, checkpoint: TensorSource, *, tuned: bool) -> Folder:
        """List a checkpoint's folder and check its tokenizer.

        Raises:
            InputRefused: E_PROBE_TOKENIZER, see `check_tokenizer`.
        """
        return cls(checkpoint, checkpoint.beside(), check_tokenizer(probes, checkpoint, tuned=tuned))

    def require_unchanged(self) -> None:
        """Refuse a folder in which a file that a server may use changed after it was listed.

        Raises:
            IntegrityError: E_CHANGED.
        """
        self.checkpoint.require_unchanged_beside(self.files)

    def facts(self) -> dict[str, Any]:
        """Return the facts of the folder for the receipt."""
        return {
            "config": flat(self.checkpoint.config),
            "files": file_facts(self.files),
            "tokenizer": self.tokenizer.describe(),
        }
