"""Comparison of a checkpoint's tokenizer with the registered tokenizer: both must give the probe's text the same ids.

An audit replays one sequence of ids through both checkpoints. For a checkpoint that assigns other ids to the text, the
registered ids are another text, and every number of the audit would be about a text that nobody registered.
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
from moe_atlas.probes.reading.bounded_files import sha256_hex
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.probes.windows import Window, build_windows
from moe_atlas.text import quoted

TOKENIZER = "tokenizer.json"
ALLOWED = "tokenizer"
SAME_FILE, SAME_IDS, OTHER_IDS, NOT_COMPARED = "same-file", "same-ids", "other-ids", "not-compared"


@dataclass(frozen=True)
class TokenizerCheck:
    """The comparison of a checkpoint's tokenizer with the registered tokenizer.

    Attributes:
        sha256: sha256 of the checkpoint's tokenizer.json; None if there is no such file or it was not read.
        result: ``same-file``, ``same-ids``, ``other-ids`` or ``not-compared``.
        reason: the difference, or why there was no comparison.
    """

    sha256: str | None
    result: str
    reason: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return the result in the form of a receipt."""
        return {"sha256": self.sha256, "result": self.result, "reason": self.reason}


def check_tokenizer(probes: ProbeSet, checkpoint: TensorSource, *, tuned: bool) -> TokenizerCheck:
    """Compare a checkpoint's tokenizer.json with the registered tokenizer: first the bytes, then the ids.

    Args:
        probes: the registered probe set.
        checkpoint: the opened checkpoint.
        tuned: whether this is the tuned checkpoint; a policy may allow other ids for it.

    Raises:
        InputRefused: E_PROBE_TOKENIZER if the tokenizer gives the probe's text other ids, or cannot be read.
    """
    registered = probes.lock.body["tokenizer"]
    if registered["kind"] != "file":
        return TokenizerCheck(
            None, NOT_COMPARED, f"the probe's tokens come from {registered['kind']}, no tokenizer file"
        )
    check = _compare(probes, checkpoint)
    if check.result == OTHER_IDS and not (tuned and ALLOWED in probes.config.policy.allow):
        raise InputRefused(
            "E_PROBE_TOKENIZER",
            place(checkpoint.where(TOKENIZER)),
            f"{check.reason}: the registered ids are another text to this checkpoint",
            _next_step(tuned),
        )
    return check


def _next_step(tuned: bool) -> str:
    if not tuned:
        return "register the probe file with this tokenizer.json"
    return (
        "give the tuned checkpoint the vocabulary of its base; if only the ids of the text were meant to change, "
        f"register a policy with allow: [{ALLOWED}]"
    )


def _compare(probes: ProbeSet, checkpoint: TensorSource) -> TokenizerCheck:
    try:
        raw = checkpoint.read_small(TOKENIZER, MAX_TOKENIZER_BYTES)
    except InputRefused as error:
        return TokenizerCheck(
            None, OTHER_IDS, f"cannot be held against the registered tokenizer: {error.problem}"
        )
    if raw is None:
        return TokenizerCheck(None, NOT_COMPARED, f"no {TOKENIZER} stands beside the checkpoint")
    sha256 = sha256_hex(raw)
    if sha256 == probes.lock.body["tokenizer"]["sha256"]:
        return TokenizerCheck(sha256, SAME_FILE)
    try:
        counting = _Counting(parse_tokenizer(raw, checkpoint.where(TOKENIZER)))
        windows = build_windows(probes.config, counting).windows
    except AtlasError as error:
        return TokenizerCheck(sha256, OTHER_IDS, f"cannot number the probe's text: {error.problem}")
    if not counting.texts:
        return TokenizerCheck(sha256, NOT_COMPARED, "every source of the probe holds token ids")
    found = _first_difference(probes, windows)
    return TokenizerCheck(sha256, SAME_IDS) if found is None else TokenizerCheck(sha256, OTHER_IDS, found)


def _first_difference(probes: ProbeSet, windows: tuple[Window, ...]) -> str | None:
    """Describe how many windows have other ids, with the first differing ids; None if no window differs."""
    if len(windows) != len(probes.windows):  # registration drops documents that are shorter than a window
        return f"cuts {len(windows)} windows from the probe's sources, {len(probes.windows)} are registered"
    pairs = list(zip(probes.windows, windows, strict=True))
    differing = [
        (first, second) for first, second in pairs if not np.array_equal(first.tokens, second.tokens)
    ]
    if not differing:
        return None
    first, second = differing[0]
    where = f"domain {quoted(probes.domain(first).name)}, document {quoted(first.document_id)}"
    at = _first_differing_position(first.tokens, second.tokens)
    ids = [", ".join(map(str, window.tokens[at : at + 4])) for window in (first, second)]
    return (
        f"numbers the probe's text otherwise than the registered tokenizer in {len(differing)} of {len(pairs)} windows "
        f"({where}, token {at}: registered {ids[0]}, here {ids[1]})"
    )


def _first_differing_position(first: Tokens, second: Tokens) -> int:
    """Return the first position at which two sequences of ids differ."""
    shared = min(len(first), len(second))
    differs = np.flatnonzero(first[:shared] != second[:shared])
    return int(differs[0]) if len(differs) else shared


class _Counting(Tokenizer):
    """A tokenizer that counts the texts that it encodes."""

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
