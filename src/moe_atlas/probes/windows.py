"""Cutting documents into windows: which documents, which positions, always the same ones.

Every choice is a pure function of (registered seed, domain name, document id), so it holds on any machine and
does not move when rows are added behind or shuffled, other than that a newcomer may be drawn itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused
from moe_atlas.probes.files import shown
from moe_atlas.probes.schema import Domain, ProbeConfig
from moe_atlas.probes.sources import Record, Source, read_source
from moe_atlas.probes.tokenizer import Tokenizer, Tokens, open_tokenizer
from moe_atlas.statistics.generator import draw, integers, stream_key


@dataclass(frozen=True)
class Window:
    """One window of tokens.

    Attributes:
        domain: index into the probe file's domains.
        document: global document number; windows of one document are resampled together.
        document_id: the document's own id.
        tokens: token ids, int64 [S].
        scored: whether the prediction made at position s counts in the output metrics, bool [S-1]; position s
            predicts token s+1. All true but for the prompt of a prompt+completion row.
    """

    domain: int
    document: int
    document_id: str
    tokens: Tokens
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """The windows of a probe file, and the digests of what they were cut from.

    Attributes:
        windows: base-role domains first, each role in the file's order of domains, documents in the source's
            order.
        sources: digest of every domain's source, in the file's order.
        tokenizer_kind: ``file``, ``bytes`` or ``ids``.
        tokenizer_sha256: digest of the tokenizer file, if there is one.
    """

    windows: tuple[Window, ...]
    sources: tuple[str, ...]
    tokenizer_kind: str
    tokenizer_sha256: str | None


@dataclass(frozen=True)
class _Document:
    """A document's rows as token ids, each with the length of its prompt."""

    document_id: str
    where: str
    parts: tuple[tuple[Tokens, int], ...]


def build_windows(config: ProbeConfig, tokenizer: Tokenizer | None = None) -> Sample:
    """Read every source and cut its windows.

    Args:
        config: the probe file.
        tokenizer: what numbers the text; the one that the probe file names by default.

    Raises:
        InputRefused: E_PROBE_SOURCE (unreadable or malformed), E_PROBE_TOKENIZER, E_PROBE_COUNT (fewer
            documents than asked), E_PROBE_SHORT (documents shorter than their windows), E_PROBE_DUPLICATE
            (two documents or windows with the same tokens).
    """
    folder = config.path.parent
    tokenizer = tokenizer or open_tokenizer(config.tokenizer, folder)
    order = sorted(range(len(config.domains)), key=lambda n: config.domains[n].role != "base")
    sources: dict[int, str] = {}
    windows: list[Window] = []
    seen: dict[bytes, str] = {}
    number = 0
    for index in order:
        domain = config.domains[index]
        source = read_source(folder / domain.source)
        sources[index] = source.sha256
        documents = _choose(domain, source, config.windows.seed, tokenizer)
        _check_lengths(domain, documents, config)
        for document in documents:
            pieces = _cut(document, domain, config)
            cut = [Window(index, number, document.document_id, *piece) for piece in pieces]
            _check_new(document, cut, f"{domain.name}/{document.document_id}", seen)
            windows.extend(cut)
            number += 1
    digests = tuple(sources[index] for index in range(len(config.domains)))
    return Sample(tuple(windows), digests, tokenizer.kind, tokenizer.sha256)


def _choose(domain: Domain, source: Source, seed: int, tokenizer: Tokenizer) -> list[_Document]:
    """The documents with the smallest draws, in the source's order."""
    rows: dict[str, list[Record]] = {}
    for record in source.records:
        rows.setdefault(record.document_id, []).append(record)
    wanted = len(rows) if domain.documents is None else domain.documents
    if len(rows) < max(wanted, 1):
        found = f"{shown(domain.source)} holds {len(rows)}"
        problem = f"domain {shown(domain.name)} asks for {max(wanted, 1)} documents, {found}"
        raise InputRefused("E_PROBE_COUNT", domain.where, problem, "add documents, or ask for fewer")
    rank = {name: int(draw(_stream(seed, "choice", domain.name, name), 1)[0]) for name in rows}
    chosen = set(sorted(rows, key=lambda name: (rank[name], name))[:wanted])
    return [_encode(name, records, tokenizer) for name, records in rows.items() if name in chosen]


def _encode(name: str, records: list[Record], tokenizer: Tokenizer) -> _Document:
    return _Document(name, records[0].where, tuple(record.encode(tokenizer) for record in records))


def _stream(seed: int, purpose: str, *names: str) -> int:
    """The key of a stream of draws that belongs to these names alone."""
    digest = hashlib.sha256("\0".join((purpose, *names)).encode("utf-8")).digest()
    return stream_key(seed, int.from_bytes(digest[:8], "little"))


def _check_lengths(domain: Domain, documents: list[_Document], config: ProbeConfig) -> None:
    """Every part must hold its windows; a shorter one is an error, never a smaller or padded window."""
    need = config.windows.tokens * config.windows.per_document
    short: list[str] = []
    for document in documents:
        for tokens, prompt in document.parts:
            if prompt and domain.role != "task":
                problem = f"prompt and completion need role task, {shown(domain.name)} is {domain.role}"
                raise InputRefused("E_PROBE_SOURCE", document.where, problem, "give this domain plain text")
            if len(tokens) < (prompt + 1 if prompt else need):
                short.append(f"{document.document_id} ({len(tokens) - prompt})")
    if short:
        named = ", ".join(shown(name) for name in short[:3]) + (" …" if len(short) > 3 else "")
        wanted = f"{need} tokens, or have an empty completion"
        problem = f"{len(short)} of {len(documents)} documents are shorter than {wanted}: {named}"
        hint = "remove them from the source, or register shorter windows"
        raise InputRefused("E_PROBE_SHORT", domain.where, f"domain {shown(domain.name)}: {problem}", hint)


def _cut(
    document: _Document, domain: Domain, config: ProbeConfig
) -> Iterable[tuple[Tokens, NDArray[np.bool_]]]:
    """Tokens and scored positions of each window of a document."""
    size, count = config.windows.tokens, config.windows.per_document
    for part, (tokens, prompt) in enumerate(document.parts):
        if prompt:
            yield tokens, np.arange(1, len(tokens)) >= prompt
            continue
        key = _stream(config.windows.seed, "start", domain.name, document.document_id, str(part))
        # Disjoint by construction: sorted draws over what is left when the windows are taken out.
        slack = len(tokens) - size * count
        for n, offset in enumerate(np.sort(integers(key, slack + 1, count))):
            start = int(offset) + n * size
            yield tokens[start : start + size].copy(), np.ones(size - 1, dtype=np.bool_)


def _check_new(document: _Document, windows: list[Window], name: str, seen: dict[bytes, str]) -> None:
    """Refuse a document or window met before: it would count as evidence twice."""
    whole = ("document", [tokens for tokens, _ in document.parts])
    bodies = [whole, *(("window", [window.tokens]) for window in windows)]
    digests = {_digest(kind, parts): kind for kind, parts in bodies}
    if len(digests) < len(bodies):
        raise InputRefused("E_PROBE_DUPLICATE", shown(name), "two of its own windows hold the same tokens")
    for digest, kind in digests.items():
        if digest in seen:
            problem = f"its {kind} holds the same tokens as one of {shown(seen[digest])}"
            hint = "remove one of the two, or change the seed"
            raise InputRefused("E_PROBE_DUPLICATE", shown(name), problem, hint)
        seen[digest] = name


def _digest(kind: str, parts: list[Tokens]) -> bytes:
    body = hashlib.sha256(kind.encode())
    for tokens in parts:
        body.update(len(tokens).to_bytes(8, "little") + tokens.astype("<i8").tobytes())
    return body.digest()
