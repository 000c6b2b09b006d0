"""Build the windows of a whole probe file, refuse duplicates, and find documents that hold the same text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents.encoding import Encoder
from moe_atlas.probes.documents.near_copies import Text, across, clustered, common_opening, shingle_length
from moe_atlas.probes.documents.selection import Chosen, Document, choose, cut
from moe_atlas.probes.documents.sources import open_source
from moe_atlas.probes.documents.tokenizer import Tokenizer, Tokens
from moe_atlas.probes.settings.schema import ProbeConfig
from moe_atlas.text import quoted

SHARED = 0.1
"""Largest share of a domain's documents whose text may also stand in another domain."""


@dataclass(frozen=True)
class Window:
    """One window of tokens.

    Attributes:
        domain: index into the probe file's domains.
        document: global document number; windows of one document are resampled together. Near-copies share the
            number of the first of them.
        document_id: the document's own id.
        tokens: token ids, int64 [S].
        scored: whether the prediction made at position s counts in the output metrics, bool [S-1]; position s
            predicts token s+1. False for the tokens of a prompt, and in a conversation for tokens that the model did
            not write.
    """

    domain: int
    document: int
    document_id: str
    tokens: Tokens
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """A document of a cluster: its id, and the file and line where it stands."""

    document_id: str
    where: str


Clusters = tuple[tuple[Member, ...], ...]
Elsewhere = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """The windows of a probe file, and the digests of their sources.

    Attributes:
        windows: base-role domains first, each role in the file's order of domains, documents in the source's
            order.
        sources: digest of each domain's source, in the file's order.
        chosen: the documents of each domain, in the file's order.
        template: the chat template's file and sha256; None if no row is a conversation.
        copies: for each domain, in the file's order, its clusters of near-copies; each has two documents or more.
        elsewhere: for each domain, the ids of documents whose windows stand mostly in another domain, each with that
            domain's name and the document's id there.
        tokenizer_kind: ``file``, ``bytes`` or ``ids``.
        tokenizer_sha256: digest of the tokenizer file, if there is one.
    """

    windows: tuple[Window, ...]
    sources: tuple[str, ...]
    chosen: tuple[Chosen, ...]
    template: dict[str, Any] | None
    copies: tuple[Clusters, ...]
    elsewhere: tuple[Elsewhere, ...]
    tokenizer_kind: str
    tokenizer_sha256: str | None


def build_windows(config: ProbeConfig, tokenizer: Tokenizer | None = None) -> Sample:
    """Read every source and cut its windows.

    Args:
        config: the probe file.
        tokenizer: turns text into token ids; by default the tokenizer that the probe file names.

    Raises:
        InputRefused: E_PROBE_SOURCE (unreadable or malformed), E_PROBE_TOKENIZER, E_PROBE_TEMPLATE, E_PROBE_COUNT
            (fewer documents than asked), E_PROBE_SHORT (documents shorter than their windows), E_PROBE_DUPLICATE
            (two documents with the same tokens, or two domains that share more than a tenth of their documents).
    """
    with closing(Encoder(config, tokenizer)) as encoder:
        return _sample(config, encoder)


def _sample(config: ProbeConfig, encoder: Encoder) -> Sample:
    order = sorted(range(len(config.domains)), key=lambda n: config.domains[n].role != "base")
    sources: dict[int, str] = {}
    chosen: dict[int, Chosen] = {}
    copies: dict[int, Clusters] = {}
    windows: list[Window] = []
    seen: dict[bytes, str] = {}
    number = 0
    for index in order:
        domain = config.domains[index]
        source = open_source(config.path.parent, domain.source, domain.rows)
        sources[index] = source.sha256
        chosen[index] = choose(domain, source, config, encoder)
        documents = chosen[index].documents
        own: list[Window] = []
        for n, document in enumerate(documents):
            cuts = cut(document, domain, config, encoder)
            pieces = [Window(index, n, document.document_id, *piece) for piece in cuts]
            _check_new(document, pieces, f"{domain.name}/{document.document_id}", seen)
            own.extend(pieces)
        cluster_C = _clusters(documents, own, config.windows.tokens)
        windows.extend(replace(w, document=number + int(cluster_C[w.document])) for w in own)
        copies[index] = _copies(documents, cluster_C)
        number += len(documents)
    elsewhere = _elsewhere(windows, config)
    by_domain = range(len(config.domains))
    return Sample(
        windows=tuple(windows),
        sources=tuple(sources[index] for index in by_domain),
        chosen=tuple(chosen[index] for index in by_domain),
        template=encoder.template.describe() if encoder.template else None,
        copies=tuple(copies[index] for index in by_domain),
        elsewhere=elsewhere,
        tokenizer_kind=encoder.tokenizer.kind,
        tokenizer_sha256=encoder.tokenizer.sha256,
    )


def _check_new(document: Document, windows: list[Window], name: str, seen: dict[bytes, str]) -> None:
    """Refuse a document that the source holds twice, or two equal windows of one document: both are slips."""
    if len({_digest([window.tokens]) for window in windows}) < len(windows):
        raise InputRefused("E_PROBE_DUPLICATE", quoted(name), "two of its own windows hold the same tokens")
    other = seen.setdefault(_digest([part.tokens for part in document.parts]), name)
    if other != name:
        problem = f"its document holds the same tokens as one of {quoted(other)}"
        raise InputRefused("E_PROBE_DUPLICATE", quoted(name), problem, "remove one of the two")


def _clusters(documents: Sequence[Document], windows: list[Window], size: int) -> NDArray[np.int64]:
    """Return for each document of a domain the first of its near-copies, int64 [C].

    Windows are compared because they are the evidence. Whole documents are compared too, because two windows of one
    text are one observation even if they do not overlap.
    """
    plain = [
        Text(n, part.tokens) for n, d in enumerate(documents) for part in d.parts if part.counted is None
    ]
    measured = _texts(windows)
    alone_C = np.arange(len(documents))
    shingle = shingle_length(size, max(int(text.tokens.max()) for text in (*plain, *measured)))
    return clustered(measured, shingle, clustered(plain, shingle, alone_C) if plain else alone_C)


def _texts(windows: list[Window]) -> list[Text]:
    """Return the windows of one domain as texts to compare."""
    prompts = [0 if window.scored[0] else int(np.argmax(window.scored)) + 1 for window in windows]
    template = common_opening(
        [w.tokens[:prompt] for w, prompt in zip(windows, prompts, strict=True) if prompt]
    )
    return [
        Text(window.document, window.tokens, prompt, template if prompt else 0)
        for window, prompt in zip(windows, prompts, strict=True)
    ]


def _copies(documents: Sequence[Document], cluster_C: NDArray[np.int64]) -> Clusters:
    """Return the clusters of more than one document."""
    members: dict[int, list[Member]] = {}
    for document, cluster in zip(documents, cluster_C.tolist(), strict=True):
        members.setdefault(cluster, []).append(Member(document.document_id, document.where))
    return tuple(tuple(found) for found in members.values() if len(found) > 1)


def _elsewhere(windows: list[Window], config: ProbeConfig) -> tuple[Elsewhere, ...]:
    """Find for each domain, in the file's order, the documents whose windows stand mostly in windows of other domains.

    Domains are resampled independently. If two domains share a part p of their documents, an interval over both is too
    narrow by a factor of at most sqrt(1 + p). So a few shared documents are accepted and reported; more are refused.

    Raises:
        InputRefused: E_PROBE_DUPLICATE if a domain shares more than a tenth of its documents.
    """
    groups = [window.domain for window in windows]
    by_domain = groupby(range(len(windows)), key=lambda n: windows[n].domain)
    texts = [text for _, numbers in by_domain for text in _texts([windows[n] for n in numbers])]
    highest = max(int(window.tokens.max()) for window in windows)
    found: list[dict[str, str]] = [{} for _ in config.domains]
    for one, other in across(texts, groups, shingle_length(config.windows.tokens, highest)):
        holder = windows[other]
        name = f"{config.domains[holder.domain].name}/{holder.document_id}"
        found[windows[one].domain].setdefault(windows[one].document_id, name)
    for index, domain in enumerate(config.domains):
        documents = len({window.document for window in windows if window.domain == index})
        if len(found[index]) > SHARED * documents:
            pairs = [f"{quoted(one)} in {quoted(other)}" for one, other in found[index].items()]
            named = ", ".join(pairs[:3]) + (" …" if len(pairs) > 3 else "")
            problem = (
                f"{len(pairs)} of its {documents} documents stand mostly in windows of other domains: {named}"
            )
            hint = f"take them out of one of the two; at most {SHARED:.0%} may be shared"
            raise InputRefused("E_PROBE_DUPLICATE", f"domain {quoted(domain.name)}", problem, hint)
    return tuple(tuple(pairs.items()) for pairs in found)


def _digest(parts: list[Tokens]) -> bytes:
    body = hashlib.sha256()
    for tokens in parts:
        body.update(len(tokens).to_bytes(8, "little") + tokens.astype("<i8").tobytes())
    return body.digest()
