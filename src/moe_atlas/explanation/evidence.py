"""What an explanation rests on: a verified receipt, the data beside it, and the registered documents themselves.

Legend: W windows, S tokens of one window, T tokens of all windows, P scored positions of all windows, L routed layers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes.documents.tokenizer import Detokenizer, open_tokenizer
from moe_atlas.probes.registration import ProbeSet, load_registered
from moe_atlas.receipt.token_file import recorded_tokens
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.receipt.window_file import recorded_windows
from moe_atlas.report.opening import opened
from moe_atlas.text import shown
from moe_atlas.token_arrays import NLL_BASE, NLL_INCREASE, move_names
from moe_atlas.views.receipt import ReceiptView

F64 = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """The evidence of one pair.

    Attributes:
        receipt: a receipt that verifies.
        windows: its window arrays.
        tokens: its token arrays; None if the audit kept none, or their file is absent.
        probes: the registered documents that the pair was audited on.
        tokenizer: turns their token ids into text.
    """

    receipt: ReceiptView
    windows: Mapping[str, NDArray[Any]]
    tokens: Mapping[str, NDArray[Any]] | None
    probes: ProbeSet
    tokenizer: Detokenizer

    @property
    def layers(self) -> list[int]:
        """The indices of the routed layers."""
        return [layer.layer for layer in self.receipt.layers]

    @cached_property
    def base_windows(self) -> int:
        """The number of windows of base domains, which come first."""
        return len(self.probes.base_windows)

    @cached_property
    def ids_T(self) -> Ints:
        """The token ids of all windows."""
        return np.concatenate([window.tokens for window in self.probes.windows])

    @cached_property
    def starts_W(self) -> Ints:
        """The place of each window's first token among all tokens."""
        return starts([len(window.tokens) for window in self.probes.windows])

    @cached_property
    def scored_T(self) -> NDArray[np.bool_]:
        """Which tokens have a scored prediction; the first token of a window has none."""
        return np.concatenate([np.concatenate([[False], window.scored]) for window in self.probes.windows])

    @cached_property
    def base_T(self) -> F64:
        """Loss of the base at every token, nats; NaN where the prediction is not scored."""
        return self._per_token(NLL_BASE)

    @cached_property
    def increase_T(self) -> F64:
        """Change of the loss of every token, nats; NaN where the prediction is not scored."""
        return self._per_token(NLL_INCREASE)

    @cached_property
    def layers_moved_T(self) -> Ints:
        """The number of layers in which the routed set of a token changed."""
        moved_T = np.zeros(len(self.ids_T), dtype=np.int64)
        for layer in self.layers:
            moved_T += self.kept[move_names(layer).moved] > 0
        return moved_T

    @property
    def kept(self) -> Mapping[str, NDArray[Any]]:
        """The token arrays of an audit that kept some."""
        assert self.tokens is not None
        return self.tokens

    def place(self, window: int) -> slice:
        """Return the place of a window's tokens among all tokens."""
        first = int(self.starts_W[window])
        return slice(first, first + len(self.probes.windows[window].tokens))

    def _per_token(self, name: str) -> F64:
        value_T = np.full(len(self.ids_T), np.nan)
        value_T[self.scored_T] = self.kept[name]
        return value_T


def starts(lengths: list[int]) -> Ints:
    """Return the start of each of some consecutive parts."""
    return np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)


def load_evidence(receipt: Path, probe: Path, policy_from: Path | None = None) -> Evidence:
    """Verify a receipt, and read the documents on which its pair was audited.

    Args:
        receipt: the receipt of an audit.
        probe: the probe file with which the pair was audited; its sources must be at hand.
        policy_from: the central policy file under which the probe file was registered.

    Raises:
        UsageError: E_KIND for a baseline; E_PROBE_MISSING, E_PROBE_UNREGISTERED.
        InputRefused: E_PROBE_LOCK if the documents are not those of the receipt, or not as registered; every refusal of
            the probe file and of its sources.
        IntegrityError: E_RECEIPT, E_WINDOWS or E_TOKENS if the receipt does not verify.
    """
    body = intact_receipt(receipt)
    view = opened(body, receipt)
    if view.is_baseline:
        problem = "is the receipt of a baseline, which compares nothing"
        raise UsageError("E_KIND", shown(str(receipt)), problem, "give the receipt of an audit")
    probes = load_registered(probe, policy_from)
    _require_same_documents(view, probes, receipt)
    tokenizer = open_tokenizer(probes.config.tokenizer, probes.config.path.parent)
    tokens = recorded_tokens(receipt, body) if _has_tokens(receipt, view) else None
    return Evidence(view, recorded_windows(receipt, body), tokens, probes, tokenizer)


def _has_tokens(path: Path, receipt: ReceiptView) -> bool:
    named = receipt.evidence.tokens
    return named is not None and os.path.lexists(path.parent / named.file)


def _require_same_documents(receipt: ReceiptView, probes: ProbeSet, path: Path) -> None:
    lock = receipt.probe.lock
    recorded = str(lock.content_sha256 if lock else None)
    if recorded != probes.lock.content_sha256:
        where = shown(str(probes.config.path))
        problem = (
            f"registers other documents or another policy than {shown(str(path))} was measured with: its lock has "
            f"content {probes.lock.content_sha256[:16]}…, the receipt names {recorded[:16]}…"
        )
        step = "give the probe file, lock and documents with which the pair was audited"
        raise InputRefused("E_PROBE_LOCK", where, problem, step)
