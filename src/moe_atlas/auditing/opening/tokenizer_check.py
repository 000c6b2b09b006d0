"""The tokenizer beside a checkpoint against the registered one: do both give the probe's text the same numbers?

An audit replays one sequence of ids through both checkpoints. Where a checkpoint numbers text otherwise, those ids are
another text to it, and every figure is about a text that nobody registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_atlas.checkpoint.headers.refuse import place
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import AtlasError, InputRefused
from moe_atlas.probes.documents.tokenizer import (
    MAX_TOKENIZER_BYTES,
    FileTokenizer,
    Marks,
    Tokenizer,
    Tokens,
    parse_tokenizer,
)
from moe_atlas.probes.reading.bounded_files import sha256_hex, shown
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.probes.windows import Window, build_windows

TOKENIZER = "tokenizer.json"
ALLOWED = "tokenizer"
SAME_FILE, SAME_IDS, OTHER_IDS, NOT_COMPARED = "same-file", "same-ids", "other-ids", "not-compared"


@dataclass(frozen=True)
class Held:
    """What came of holding a checkpoint's tokenizer against the registered one.

    Attributes:
        sha256: of the checkpoint's tokenizer.json, None where there is none or it was not read.
        result: ``same-file``, ``same-ids``, ``other-ids`` or ``not-compared``.
        reason: why it was not compared, or what differs.
    """

    sha256: str | None
    result: str
    reason: str | None = None

    def describe(self) -> dict[str, Any]:
        """The result as a receipt keeps it."""
        return {"sha256": self.sha256, "result": self.result, "reason": self.reason}


def hold_tokenizer(probes: ProbeSet, checkpoint: TensorSource, *, tuned: bool) -> Held:
    """Hold the tokenizer.json beside a checkpoint against the registered one, by its bytes, else by the ids it gives.

    Args:
        probes: the registered probe set.
        checkpoint: whose folder is looked into.
        tuned: whether it is the tuned checkpoint, whose other numbering a policy may allow by name.

    Raises:
        InputRefused: E_PROBE_TOKENIZER when it numbers the probe's text otherwise, or cannot be read to tell.
    """
    registered = probes.lock.body["tokenizer"]
    if registered["kind"] != "file":
        return Held(
            None, NOT_COMPARED, f"the probe's tokens come from {registered['kind']}, no tokenizer file"
        )
    held = _compared(probes, checkpoint)
    if held.result == OTHER_IDS and not (tuned and ALLOWED in probes.config.policy.allow):
        raise InputRefused(
            "E_PROBE_TOKENIZER",
            place(checkpoint.where(TOKENIZER)),
            f"{held.reason}: the registered ids are another text to this checkpoint",
            _next_step(tuned),
        )
    return held


def _next_step(tuned: bool) -> str:
    if not tuned:
        return "register the probe file with this tokenizer.json"
    return (
        "give the tuned checkpoint the vocabulary of its base; where only the numbering of text was meant to change, "
        f"register a policy with allow: [{ALLOWED}]"
    )


def _compared(probes: ProbeSet, checkpoint: TensorSource) -> Held:
    try:
        raw = checkpoint.read_small(TOKENIZER, MAX_TOKENIZER_BYTES)
    except InputRefused as error:
        return Held(None, OTHER_IDS, f"cannot be held against the registered tokenizer: {error.problem}")
    if raw is None:
        return Held(None, NOT_COMPARED, f"no {TOKENIZER} stands beside the checkpoint")
    sha256 = sha256_hex(raw)
    if sha256 == probes.lock.body["tokenizer"]["sha256"]:
        return Held(sha256, SAME_FILE)
    try:
        counting = _Counting(parse_tokenizer(raw, checkpoint.where(TOKENIZER)))
        windows = build_windows(probes.config, counting).windows
    except AtlasError as error:
        return Held(sha256, OTHER_IDS, f"cannot number the probe's text: {error.problem}")
    if not counting.texts:
        return Held(sha256, NOT_COMPARED, "every source of the probe holds token ids")
    found = _first_difference(probes, windows)
    return Held(sha256, SAME_IDS) if found is None else Held(sha256, OTHER_IDS, found)


def _first_difference(probes: ProbeSet, windows: tuple[Window, ...]) -> str | None:
    """How many windows hold other ids, and the first ids of the first of them."""
    if len(windows) != len(probes.windows):  # documents shorter than their windows are left out
        return f"cuts {len(windows)} windows from the probe's sources, {len(probes.windows)} are registered"
    pairs = list(zip(probes.windows, windows, strict=True))
    differing = [(one, other) for one, other in pairs if not np.array_equal(one.tokens, other.tokens)]
    if not differing:
        return None
    one, other = differing[0]
    where = f"domain {shown(probes.domain(one).name)}, document {shown(one.document_id)}"
    at = _parting(one.tokens, other.tokens)
    ids = [", ".join(map(str, window.tokens[at : at + 4])) for window in (one, other)]
    return (
        f"numbers the probe's text otherwise than the registered tokenizer in {len(differing)} of {len(pairs)} windows "
        f"({where}, token {at}: registered {ids[0]}, here {ids[1]})"
    )


def _parting(one: Tokens, other: Tokens) -> int:
    """The first position at which two sequences of ids differ."""
    shared = min(len(one), len(other))
    differs = np.flatnonzero(one[:shared] != other[:shared])
    return int(differs[0]) if len(differs) else shared


class _Counting(Tokenizer):
    """A tokenizer that counts the texts it was given."""

    def __init__(self, inner: FileTokenizer) -> None:
        self._inner = inner
        self.texts = 0

    @property
    def kind(self) -> str:
        return self._inner.kind

    @property
    def sha256(self) -> str | None:
        return self._inner.sha256

    def encode(self, text: str, where: str) -> Tokens:
        self.texts += 1
        return self._inner.encode(text, where)

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]], where: str) -> tuple[Tokens, Marks]:
        self.texts += 1
        return self._inner.encode_marked(text, spans, where)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_id(token)
