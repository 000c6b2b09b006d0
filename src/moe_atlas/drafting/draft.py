"""Draft a probe file for a base checkpoint, and try it as a registration would."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from moe_atlas.auditing.checks import require_measurable
from moe_atlas.auditing.opening.pairing import require_comparable
from moe_atlas.auditing.opening.tokenizer_check import TOKENIZER
from moe_atlas.checkpoint.config_keys import difference, flat
from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.checkpoint.index import Checkpoint, open_checkpoint
from moe_atlas.drafting.choices import Choice, documents, protected, token_stride, window_tokens
from moe_atlas.drafting.documents import Given, Surveyed, source_of, survey
from moe_atlas.drafting.probe_file import Draft
from moe_atlas.errors import UsageError
from moe_atlas.loading.registry import resolve
from moe_atlas.models.spec import ModelSpec
from moe_atlas.probes.documents.encoding import Encoder
from moe_atlas.probes.documents.tokenizer import MAX_TOKENIZER_BYTES
from moe_atlas.probes.load import read_probes
from moe_atlas.probes.lock import Lock, content, lock_path
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.probes.windows import build_windows
from moe_atlas.text import shown

TOKENIZER_CONFIG = "tokenizer_config.json"
_MAX_CONFIG_BYTES = 64 << 20
_NAMED = 8  # keys of a configuration that are named
# A probe file of which only the tokenizer is meant, to measure documents before their domains are known.
_ONLY_TOKENIZER = """{start}
windows: {{tokens: 32}}
protected_layers: all
domains: [{{name: any, role: base, source: any}}]
policy: {{stage: damage-only, task: none, damage: {{nll: 1, document_nll: 1, document_share: 0.1}}}}
"""


@dataclass(frozen=True)
class Drafted:
    """A probe file that registers.

    Attributes:
        text: the probe file.
        lock: what a registration would bind, without a time.
        notes: what the two checkpoints of the pair do not share.
    """

    text: str
    lock: Lock
    notes: list[str]


def draft(
    out: Path, base: Path, given: Sequence[Given], *, tuned: Path | None, tokenizer: str | None, margin: float
) -> Drafted:
    """Choose everything that a probe file says, and build its windows.

    Args:
        out: the probe file to be written; its sources are named from its folder.
        base: the base checkpoint.
        given: the domains.
        tuned: a tuned checkpoint, which must be comparable with the base.
        tokenizer: a ``tokenizer.json``, ``bytes``, or ``none`` if all sources hold token ids; None takes the tokenizer
            beside the base.
        margin: margin of the mean NLL increase, nats per token.

    Raises:
        UsageError: E_NO_FILE; E_NO_TOKENIZER if no tokenizer is beside the base and none is given.
        InputRefused: every refusal of `open_checkpoint`, `resolve`, `require_comparable`, `build_windows` and
            `require_measurable`.
    """
    checkpoint = open_checkpoint(base)
    spec = resolve(checkpoint)
    notes = [] if tuned is None else list(_pair(checkpoint, spec, open_checkpoint(tuned)))
    home, bos = out.parent, tokenizer is None and _begins_with_bos(checkpoint)
    empty = Draft(
        name=base.resolve().name,
        tokenizer=_tokenizer(checkpoint, tokenizer, home),
        bos=bos,
        windows=Choice(32, ""),
        stride=Choice(1, ""),
        layers=protected(spec),
        domains=(),
        margin=margin,
        notes=notes,
    )
    found = _surveyed(empty, given, out)
    windows = window_tokens(found, _context(checkpoint), int(bos))
    tokens = int(windows.value)
    counts = [documents(domain, tokens - int(bos)) for domain in found]
    measured = sum(
        count * tokens for domain, count in zip(found, counts, strict=True) if domain.given.role == "base"
    )
    whole = replace(
        empty,
        windows=windows,
        stride=token_stride(spec, measured),
        domains=list(zip(found, counts, strict=True)),
    )
    text = whole.text()
    config = read_probes(text.encode("utf-8"), out)
    sample = build_windows(config)
    lock = Lock(lock_path(out), "", content(config, sample))
    require_measurable(ProbeSet(config, sample.windows, lock), [checkpoint], [spec])
    return Drafted(text, lock, notes)


def _surveyed(empty: Draft, given: Sequence[Given], out: Path) -> list[Surveyed]:
    """Measure the documents of every domain with the tokenizer of the file to be written."""
    config = read_probes(_ONLY_TOKENIZER.format(start=empty.start()).encode("utf-8"), out)
    sources = [source_of(one.path, out.parent) for one in given]
    with closing(Encoder(config)) as encoder:
        return [
            survey(one, source, out.parent, encoder, config.windows.seed)
            for one, source in zip(given, sources, strict=True)
        ]


def _tokenizer(checkpoint: Checkpoint, named: str | None, home: Path) -> str | None:
    """Return the tokenizer as a probe file in `home` names it; None for sources of token ids."""
    if named in ("bytes", "none"):
        return None if named == "none" else named
    path = Path(checkpoint.where(TOKENIZER)) if named is None else Path(named)
    if named is None and not path.exists():
        step = "give the model's own: --tokenizer FILE, or --tokenizer bytes for a model of UTF-8 bytes"
        raise UsageError("E_NO_TOKENIZER", shown(str(path)), "there is no tokenizer beside the base", step)
    return os.path.relpath(path.resolve(), home.resolve())


def _begins_with_bos(checkpoint: Checkpoint) -> bool:
    """Return whether the base's tokenizer puts its `bos_token` in front of every text."""
    raw = checkpoint.read_small(TOKENIZER_CONFIG, _MAX_CONFIG_BYTES)
    config = {} if raw is None else parse_json_object(raw, checkpoint.where(TOKENIZER_CONFIG))
    return config.get("add_bos_token") is True and config.get("bos_token") is not None


def _context(checkpoint: Checkpoint) -> int | None:
    """Return how many tokens the model reads at once, if its configuration says so."""
    found = [
        int(value)
        for key, value in flat(checkpoint.config).items()
        if key.rpartition(".")[2] == "max_position_embeddings" and value.isdecimal()
    ]
    return max(found, default=None)


def _pair(base: Checkpoint, spec: ModelSpec, tuned: Checkpoint) -> Iterator[str]:
    """Yield what the two checkpoints do not share; refuse a pair that cannot be compared."""
    require_comparable(spec, resolve(tuned), base.label, tuned.label)
    rows = [row for row in difference(flat(base.config), flat(tuned.config)) if row["rank"] != "cosmetic"]
    for row in rows[:_NAMED]:
        yield f"config.json differs in {row['key']}: base {row['base']}, tuned {row['tuned']}"
    if len(rows) > _NAMED:
        yield f"config.json differs in {len(rows) - _NAMED} more keys; a receipt lists them all"
    one, other = (side.read_small(TOKENIZER, MAX_TOKENIZER_BYTES) for side in (base, tuned))
    if one is not None and other is not None and one != other:
        yield f"{TOKENIZER} differs: an audit refuses the pair if the probe's text gets other token ids"
