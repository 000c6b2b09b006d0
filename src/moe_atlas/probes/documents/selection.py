"""Choose documents of a source and positions within them, reproducibly.

Every choice is a pure function of (registered seed, domain name, document id). So it is the same on any machine, and
new or shuffled rows do not change it, except that a new document may be drawn itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents.encoding import Encoder, Part
from moe_atlas.probes.documents.rows import Record
from moe_atlas.probes.documents.sources import Source
from moe_atlas.probes.documents.tokenizer import Marks, Tokens
from moe_atlas.probes.reading.bounded_files import sha256_hex
from moe_atlas.probes.settings.schema import Domain, ProbeConfig
from moe_atlas.statistics.generator import draw, integers, stream_key
from moe_atlas.text import quoted


@dataclass(frozen=True)
class Document:
    """A document's rows as token ids."""

    document_id: str
    where: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Chosen:
    """The documents of a domain.

    Attributes:
        documents: in the source's order.
        left_out: number of documents that were drawn and left out because they are shorter than their windows; None if
            the domain refuses shorter documents.
        rendered_sha256: digest of the lines ``id TAB sha256`` of all rendered texts; None if no row was rendered.
    """

    documents: tuple[Document, ...]
    left_out: int | None
    rendered_sha256: str | None


def choose(domain: Domain, source: Source, config: ProbeConfig, encoder: Encoder) -> Chosen:
    """Take the documents with the smallest draws.

    Raises:
        InputRefused: E_PROBE_COUNT (fewer documents than asked), E_PROBE_SHORT (documents shorter than their windows),
            and every refusal of an `Encoder`.
    """
    rows: dict[str, list[Record]] = {}
    for record in source.records:
        rows.setdefault(record.document_id, []).append(record)
    wanted = len(rows) if domain.documents is None else domain.documents
    _require(domain, max(wanted, 1), len(rows))
    drawn = in_drawn_order(rows, domain.name, config.windows.seed)
    skip = domain.shorter == "skip"
    taken: dict[str, Document] = {}
    short: dict[str, int] = {}
    for name in drawn if skip else drawn[:wanted]:
        if len(taken) == wanted:
            break
        document = Document(name, rows[name][0].where, tuple(encoder.part(record) for record in rows[name]))
        lacking = [part for part in document.parts if not _holds(part, domain, config, encoder)]
        if lacking:
            short[name] = len(lacking[0].tokens)
        if not (lacking and skip):
            taken[name] = document
    if short and not skip:
        _refuse_short(domain, {name: short[name] for name in rows if name in short}, len(taken), config)
    if skip:
        left = f" that are not shorter than {_need(config)} tokens"
        _require(domain, max(1, wanted if domain.documents else 1), len(taken), left)
    documents = tuple(taken[name] for name in rows if name in taken)
    return Chosen(documents, len(short) if skip else None, _rendered(documents))


def in_drawn_order(names: Iterable[str], domain: str, seed: int) -> list[str]:
    """Return the ids of documents, the document that a registration takes first in front."""
    rank = {name: int(draw(stream(seed, "choice", domain, name), 1)[0]) for name in names}
    return sorted(rank, key=lambda name: (rank[name], name))


def _require(domain: Domain, wanted: int, found: int, which: str = "") -> None:
    if found < wanted:
        holds = f"{quoted(domain.source)} holds {found}{which}"
        problem = f"domain {quoted(domain.name)} asks for {wanted} documents, {holds}"
        raise InputRefused("E_PROBE_COUNT", domain.where, problem, "add documents, or ask for fewer")


def _refuse_short(domain: Domain, short: dict[str, int], count: int, config: ProbeConfig) -> None:
    lengths = [f"{quoted(name)} ({length})" for name, length in short.items()]
    named = ", ".join(lengths[:3]) + (" …" if len(short) > 3 else "")
    lacking = f"shorter than {_need(config)} tokens, or have nothing that is scored"
    problem = f"domain {quoted(domain.name)}: {len(short)} of {count} documents are {lacking}: {named}"
    hint = "remove them, register shorter windows, or write shorter: skip into the domain to leave them out on record"
    raise InputRefused("E_PROBE_SHORT", domain.where, problem, hint)


def _rendered(documents: tuple[Document, ...]) -> str | None:
    lines = [
        f"{document.document_id}\t{part.rendered_sha256}\n"
        for document in documents
        for part in document.parts
        if part.rendered_sha256
    ]
    return sha256_hex("".join(lines).encode("utf-8")) if lines else None


def stream(seed: int, purpose: str, *names: str) -> int:
    """Return the key of a stream of draws that no other names share."""
    digest = hashlib.sha256("\0".join((purpose, *names)).encode("utf-8")).digest()
    return stream_key(seed, int.from_bytes(digest[:8], "little"))


def _need(config: ProbeConfig) -> int:
    return config.windows.tokens * config.windows.per_document


def _is_whole(part: Part, domain: Domain) -> bool:
    """Return whether a row is a single window of its own length: a task's answer is never cut."""
    return part.counted is not None and domain.role == "task"


def _holds(part: Part, domain: Domain, config: ProbeConfig, encoder: Encoder) -> bool:
    """Return whether a row is long enough for its windows; a shorter row never becomes a smaller or padded window."""
    front = 0 if encoder.bos is None else 1
    if _is_whole(part, domain):
        return bool(_whole(part, encoder.bos)[1].any())
    size, count = config.windows.tokens - front, config.windows.per_document
    if len(part.tokens) < size * count:
        return False
    return (
        part.counted is None or _latest(_scoring_starts(part.counted, size, front), size, count) is not None
    )


def cut(
    document: Document, domain: Domain, config: ProbeConfig, encoder: Encoder
) -> Iterator[tuple[Tokens, Marks]]:
    """Yield tokens and scored positions of each window of a document: int64 [S], bool [S-1]."""
    front = 0 if encoder.bos is None else 1
    size, count = config.windows.tokens - front, config.windows.per_document
    for number, part in enumerate(document.parts):
        if _is_whole(part, domain):
            yield _whole(part, encoder.bos)
            continue
        key = stream(config.windows.seed, "start", domain.name, document.document_id, str(number))
        if part.counted is None:
            starts = _starts(key, len(part.tokens), size, count)
        else:
            starts = _scoring(key, _scoring_starts(part.counted, size, front), size, count)
        for start in starts.tolist():
            counted = None if part.counted is None else part.counted[start : start + size]
            yield _whole(Part(part.tokens[start : start + size], counted), encoder.bos)


def _whole(part: Part, bos: int | None) -> tuple[Tokens, Marks]:
    """Return a row as a single window with the special token at its start, if there is one."""
    counted = np.ones(len(part.tokens), dtype=np.bool_) if part.counted is None else part.counted
    if bos is None:
        return part.tokens.copy(), counted[1:].copy()
    return np.concatenate([[bos], part.tokens]).astype(np.int64), counted.copy()


def _starts(key: int, length: int, size: int, count: int) -> NDArray[np.int64]:
    """Return starts of disjoint windows, int64 [count]: sorted draws over the length minus that of all windows."""
    return np.sort(integers(key, length - size * count + 1, count)) + size * np.arange(count)


def _scoring_starts(counted: Marks, size: int, front: int) -> NDArray[np.int64]:
    """Return every start whose window of `size` tokens predicts a counted token, ascending, int64."""
    before = np.concatenate([[0], np.cumsum(counted)])
    starts = np.arange(len(counted) - size + 1)
    return starts[before[starts + size] > before[starts + 1 - front]]


def _latest(starts: NDArray[np.int64], size: int, count: int) -> list[int] | None:
    """Return the latest starts of `count` disjoint windows, ascending; None if so many do not fit."""
    found: list[int] = []
    end = int(starts[-1]) if len(starts) else -1
    for _ in range(count):
        place = int(np.searchsorted(starts, end, side="right"))
        if not place:
            return None
        found.append(int(starts[place - 1]))
        end = found[-1] - size
    return found[::-1]


def _scoring(key: int, starts: NDArray[np.int64], size: int, count: int) -> NDArray[np.int64]:
    """Return starts of disjoint windows, int64 [count], each drawn from the `starts` that leave room for the rest."""
    latest = _latest(starts, size, count) or []
    chosen: list[int] = []
    for number, last in enumerate(latest):
        low = int(np.searchsorted(starts, chosen[-1] + size)) if chosen else 0
        high = int(np.searchsorted(starts, last, side="right"))
        chosen.append(int(starts[low + int(integers(key, high - low, 1, number)[0])]))
    return np.array(chosen, dtype=np.int64)
