"""The probe set of a look: drawn and not registered, with a policy that gates nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_atlas.channels import GATED
from moe_atlas.checkpoint.source import TensorSource
from moe_atlas.errors import InputRefused
from moe_atlas.look.documents import Chosen, Fits, Texts, from_folder, from_library
from moe_atlas.look.request import Request
from moe_atlas.probes.documents.chat_template import BESIDE
from moe_atlas.probes.documents.tokenizer import MAX_TOKENIZER_BYTES, Tokenizer, open_tokenizer
from moe_atlas.probes.lock import Lock, content, parse_lock, seal
from moe_atlas.probes.reading.bounded_files import read_bounded, sha256_hex
from moe_atlas.probes.registration import ProbeSet
from moe_atlas.probes.settings.policy import Damage, Policy, Rewrite, SetFor, WeightRules
from moe_atlas.probes.settings.protected_layers import LayerExpression
from moe_atlas.probes.settings.schema import Domain, Evaluation, ProbeConfig, WindowsConfig
from moe_atlas.probes.windows import build_windows
from moe_atlas.text import shown

NAME = "look"
TOKENS = 128
BYTES = "bytes"
UNREGISTERED = "not registered"
"""In place of a time, so that two looks at the same documents have the same lock."""
TOKENIZER = "tokenizer.json"
MAX_BESIDE_BYTES = 16 << 20
POLICY = Policy(
    stage=NAME,
    confidence=0.95,
    resamples=2000,
    rewrite=Rewrite({channel.budget: None for channel in GATED}, None, None, None),
    damage=Damage(nll=None, kl=None, document_nll=None, document_share=None),
    weights=WeightRules((), ()),
    task_none=True,
    set_for=SetFor(None, None, None),
    allow=(),
)


@contextmanager
def look_probes(base: TensorSource, request: Request) -> Iterator[tuple[ProbeSet, dict[str, Any]]]:
    """Draw documents and yield their probe set, whose sources lie in a temporary folder, with the facts of the look.

    Args:
        base: the base checkpoint; its own tokenizer is the default.
        request: which documents, and by which tokenizer.

    Raises:
        InputRefused: E_PROBE_TOKENIZER without a tokenizer; every refusal of the documents.
    """
    with tempfile.TemporaryDirectory(prefix="atlas-look-") as place:
        folder = Path(place)
        name = _install_tokenizer(folder, base, request.tokenizer)
        chosen = _documents(request, _long_enough(open_tokenizer(name, folder)))
        probes = _probe_set(folder, name, chosen, request.seed)
        facts = {
            "source": chosen.source,
            "how": chosen.how,
            "margin": request.margin,
            "documents": [window.document_id for window in probes.windows],
        }
        yield probes, facts


def _documents(request: Request, fits: Fits) -> Chosen:
    if request.data is None:
        return from_library(request.documents, request.seed, fits)
    return from_folder(request.data, request.documents, request.seed, fits)


def _install_tokenizer(folder: Path, base: TensorSource, given: str | None) -> str:
    """Copy the tokenizer, with what says how a conversation becomes text, and return its name in a probe file.

    Raises:
        InputRefused: E_PROBE_TOKENIZER.
    """
    if given == BYTES:
        return BYTES
    if given is None:
        raw = base.read_small(TOKENIZER, MAX_TOKENIZER_BYTES)
        beside = {name: base.read_small(name, MAX_BESIDE_BYTES) for name in BESIDE}
    else:
        raw = read_bounded(Path(given), MAX_TOKENIZER_BYTES, "E_PROBE_TOKENIZER")
        paths = (Path(given).parent / name for name in BESIDE)
        beside = {path.name: path.read_bytes() for path in paths if path.is_file()}
    if raw is None:
        raise InputRefused(
            "E_PROBE_TOKENIZER",
            shown(base.where(TOKENIZER)),
            "there is no such file, and a look takes the tokenizer beside the base",
            "give the model's own with --tokenizer FILE, or --tokenizer bytes for a model that reads UTF-8 bytes",
        )
    for name, found in ({TOKENIZER: raw} | beside).items():
        if found is not None:
            (folder / name).write_bytes(found)
    return TOKENIZER


def _long_enough(tokenizer: Tokenizer) -> Fits:
    """Return whether a text fills a window; no token is shorter than a byte."""
    return lambda text: len(text.encode()) >= TOKENS and len(tokenizer.encode(text, "a document")) >= TOKENS


def _probe_set(folder: Path, tokenizer: str, chosen: Chosen, seed: int) -> ProbeSet:
    config = ProbeConfig(
        path=folder / NAME,
        name=NAME,
        tokenizer=tokenizer,
        special_tokens="none",
        chat_template=None,
        windows=WindowsConfig(TOKENS, 1, seed),
        evaluation=Evaluation("active", 1, 0.9),
        protected_layers=LayerExpression("all", (), NAME),
        domains=tuple(_domain(folder, number, texts) for number, texts in enumerate(chosen.domains)),
        policy=POLICY,
    )
    sample = build_windows(config)
    raw = seal(content(config, sample) | {"registered_at": UNREGISTERED, "predecessor": None})
    return ProbeSet(config, sample.windows, Lock(config.path, sha256_hex(raw), parse_lock(raw, NAME)))


def _domain(folder: Path, number: int, texts: Texts) -> Domain:
    source = str(texts.rows) if texts.rows else f"{number}.jsonl"
    if texts.rows is None:
        rows = (json.dumps({"id": one.name, "text": one.text}) + "\n" for one in texts.documents)
        (folder / source).write_text("".join(rows), encoding="utf-8")
    return Domain(
        name=texts.name,
        role="base",
        source=source,
        rows=None,
        documents=texts.count,
        shorter="skip" if texts.rows else "refuse",
        max_nll_increase=None,
        success=None,
        where=f"domain {shown(texts.name)} of the look",
    )
