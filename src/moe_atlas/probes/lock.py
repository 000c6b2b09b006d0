"""The lock of a probe set (schema ``atlas/probes-lock/v1``): its bytes, its digest and its content.

A lock has exactly one spelling: sorted keys, ASCII, an indent of two spaces, one final newline, and a digest of itself.
So `read_lock` notices a changed byte without a second file to compare with. `Lock.digest` is the plain sha256 of the
file, as ``sha256sum`` prints it; every receipt carries it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents.selection import Chosen
from moe_atlas.probes.reading.bounded_files import read_bounded, sha256_hex
from moe_atlas.probes.settings.schema import ProbeConfig
from moe_atlas.probes.windows import Sample, Window
from moe_atlas.system.limits import MAX_LOCK_BYTES
from moe_atlas.text import quoted

SCHEMA = "atlas/probes-lock/v1"
_KEYS = {
    *("schema", "name", "stage", "set_for", "probes", "policy_sha256", "tokenizer", "domains"),
    *("registered_at", "predecessor", "lock_sha256"),
}
_OPTIONAL = {"policy_from", "chat_template"}
_NAMED = 4  # a receipt names so many clusters, and so many members of each; the lock names all
_HISTORY = ("registered_at", "predecessor", "lock_sha256")


@dataclass(frozen=True)
class Lock:
    """A registered probe set.

    Attributes:
        path: the lock file.
        digest: sha256 of the file's bytes.
        body: the file's content.
    """

    path: Path
    digest: str
    body: dict[str, Any]

    @property
    def registered_at(self) -> str:
        """Return the registration time, UTC, ISO 8601."""
        return str(self.body["registered_at"])

    @property
    def policy_sha256(self) -> str:
        """Return the digest of everything that turns measurements into a verdict."""
        return str(self.body["policy_sha256"])

    @property
    def policy_from(self) -> dict[str, Any] | None:
        """Return the central policy file of the registration (``name``, ``sha256``), if any."""
        value: dict[str, Any] | None = self.body.get("policy_from")
        return value

    @property
    def predecessor(self) -> dict[str, Any] | None:
        """Return the lock that this lock replaced (``sha256``, ``registered_at``, ``policy_sha256``), if any."""
        value: dict[str, Any] | None = self.body["predecessor"]
        return value

    @property
    def content_sha256(self) -> str:
        """Return the digest of the registered content without time and predecessor: equal content, equal digest."""
        return sha256_hex(render(without_history(self.body)))

    def overlaps(self) -> list[dict[str, Any]]:
        """Return the receipt's rows on documents that hold the same text, one row per domain that has some."""
        rows = [_overlap(domain) for domain in self.body["domains"]]
        return [row for row in rows if row["clusters"] or row["elsewhere"]]

    def left_out(self) -> list[dict[str, Any]]:
        """Return the receipt's rows on documents drawn and left out, one row per domain that has such documents."""
        return [
            {
                "domain": domain["name"],
                "left_out": domain["left_out"],
                "taken": len({window["document"] for window in domain["windows"]}),
            }
            for domain in self.body["domains"]
            if domain.get("left_out")
        ]

    def facts(self) -> dict[str, Any]:
        """Return the receipt's entry on the lock."""
        return {
            "sha256": self.digest,
            "content_sha256": self.content_sha256,
            "registered_at": self.registered_at,
            "policy_sha256": self.policy_sha256,
            "policy_from": self.policy_from,
            "predecessor": self.predecessor,
        }


def counted(domain: dict[str, Any]) -> int:
    """Return how many documents a registered domain counts; near-copies count as one document."""
    given = len({window["document"] for window in domain["windows"]})
    return given - sum(len(cluster) - 1 for cluster in domain["near_copies"])


def _overlap(domain: dict[str, Any]) -> dict[str, Any]:
    clusters = [[member["where"] for member in cluster] for cluster in domain["near_copies"]]
    return {
        "domain": domain["name"],
        "given": len({window["document"] for window in domain["windows"]}),
        "counted": counted(domain),
        "clusters": [cluster[:_NAMED] for cluster in clusters[:_NAMED]],
        "elsewhere": len(domain["elsewhere"]),
        "examples": [f"{row['document']} in {row['in']}" for row in domain["elsewhere"][:_NAMED]],
    }


def overlap_sentences(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the warnings of a row of `Lock.overlaps`: code and message of each."""
    name = f"domain {quoted(row['domain'])}"
    if row["clusters"]:
        named = "; ".join(", ".join(quoted(where) for where in cluster) for cluster in row["clusters"])
        counted = f"{row['given']} documents count as {row['counted']}: near-copies are one document"
        yield "near-copies", f"{name}: {counted} (among them {named})"
    if row["elsewhere"]:
        named = ", ".join(quoted(example, 160) for example in row["examples"])
        problem = f"{row['elsewhere']} documents stand mostly in windows of other domains, which are resampled apart"
        yield "documents-in-two-domains", f"{name}: {problem} (among them {named})"


def left_out_sentence(row: Mapping[str, Any]) -> str:
    """Return the sentence for a row of `Lock.left_out`."""
    drawn = row["left_out"] + row["taken"]
    return (
        f"domain {quoted(row['domain'])}: {row['left_out']} of {drawn} documents drawn are shorter than their windows "
        "and were left out, as registered; the rest stands for longer documents only"
    )


def lock_path(probe_file: Path) -> Path:
    """Return the path of a probe file's lock: ``probes.lock.json`` beside ``probes.yaml``."""
    return probe_file.parent / f"{probe_file.stem}.lock.json"


def window_sha256(window: Window) -> str:
    """Return the digest of a window: its token ids as little-endian int64, then one byte for each scored position."""
    body = hashlib.sha256(window.tokens.astype("<i8").tobytes())
    body.update(window.scored.astype("u1").tobytes())
    return body.hexdigest()


def policy_document(config: ProbeConfig) -> dict[str, Any]:
    """Return what turns measurements into a verdict: policy, protected layers, evaluation, rules of domains."""
    rules = ("name", "role", "max_nll_increase", "success")
    domains = [{key: value for key, value in d.describe().items() if key in rules} for d in config.domains]
    described = config.describe()
    return {key: described[key] for key in ("policy", "protected_layers", "evaluation")} | {
        "domains": domains
    }


def content(config: ProbeConfig, sample: Sample) -> dict[str, Any]:
    """Return the part of a lock that follows from the probe file and its sources alone."""
    domains = [
        {
            "name": domain.name,
            "role": domain.role,
            "source_sha256": source,
            "windows": [
                {"document": w.document_id, "tokens": len(w.tokens), "sha256": window_sha256(w)}
                for w in sample.windows
                if w.domain == index
            ],
            "near_copies": [
                [{"document": member.document_id, "where": member.where} for member in cluster]
                for cluster in copies
            ],
            "elsewhere": [{"document": one, "in": other} for one, other in elsewhere],
        }
        | _of_rows(sample.chosen[index])
        for index, (domain, source, copies, elsewhere) in enumerate(
            zip(config.domains, sample.sources, sample.copies, sample.elsewhere, strict=True)
        )
    ]
    governed = {} if config.central is None else {"policy_from": config.central.describe()}
    rendered = {} if sample.template is None else {"chat_template": sample.template}
    return (
        governed
        | rendered
        | {
            "schema": SCHEMA,
            "name": config.name,
            "stage": config.policy.stage,
            "set_for": config.policy.set_for.describe(),
            "probes": config.describe(),
            "policy_sha256": sha256_hex(render(policy_document(config))),
            "tokenizer": {"kind": sample.tokenizer_kind, "sha256": sample.tokenizer_sha256},
            "domains": domains,
        }
    )


def _of_rows(chosen: Chosen) -> dict[str, Any]:
    """Return the entries that only some domains have: digest of rendered conversations, count of documents left out."""
    found = {"rendered_sha256": chosen.rendered_sha256, "left_out": chosen.left_out}
    return {key: value for key, value in found.items() if value is not None}


def without_history(body: dict[str, Any]) -> dict[str, Any]:
    """Return a lock's body without time, predecessor and digest: the part that must match the probe file."""
    return {key: value for key, value in body.items() if key not in _HISTORY}


def render(value: dict[str, Any]) -> bytes:
    """Return the only permitted spelling of a JSON object: sorted keys, ASCII, two spaces, a final newline."""
    return (
        json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False).encode("ascii")
        + b"\n"
    )


def seal(body: dict[str, Any]) -> bytes:
    """Return the file's bytes: `body` with its own digest."""
    unsealed = {key: value for key, value in body.items() if key != "lock_sha256"}
    return render(unsealed | {"lock_sha256": sha256_hex(render(unsealed))})


def read_lock(path: Path) -> Lock:
    """Read a lock and check it against its own digest.

    Raises:
        InputRefused: E_PROBE_LOCK if the lock is unreadable, has another schema, or was changed after it was written.
    """
    raw = read_bounded(path, MAX_LOCK_BYTES, "E_PROBE_LOCK")
    return Lock(path, sha256_hex(raw), parse_lock(raw, str(path)))


def parse_lock(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a lock's bytes and return its body.

    Raises:
        InputRefused: E_PROBE_LOCK, as `read_lock`.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputRefused("E_PROBE_LOCK", where, "is not a lock: not JSON") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        found = body.get("schema") if isinstance(body, dict) else type(body).__name__
        raise InputRefused("E_PROBE_LOCK", where, f"must have schema {SCHEMA}, found {quoted(str(found))}")
    try:
        intact = set(body) - _OPTIONAL == _KEYS and seal(body) == raw
    except ValueError:  # a NaN cannot be spelled
        intact = False
    if not intact:
        hint = "restore it from version control, or register again"
        raise InputRefused("E_PROBE_LOCK", where, "was changed after it was written", hint)
    return body


def differences(
    registered: object, found: object, name: str = "", sides: tuple[str, str] = ("registered", "now")
) -> list[str]:
    """Return one line per difference of two JSON values: ``name: registered A, now B``, in the words of `sides`."""
    if isinstance(registered, dict) and isinstance(found, dict):
        keys = sorted(set(registered) | set(found))
        return [
            line
            for key in keys
            for line in differences(
                registered.get(key), found.get(key), f"{name}.{key}" if name else str(key), sides
            )
        ]
    if isinstance(registered, list) and isinstance(found, list) and len(registered) == len(found):
        pairs = enumerate(zip(registered, found, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{name}[{_label(a, n)}]", sides)]
    if registered == found and type(registered) is type(found):
        return []
    return [f"{name}: {sides[0]} {_brief(registered)}, {sides[1]} {_brief(found)}"]


def _label(item: object, number: int) -> str:
    """Return the label of a list item: a domain's name, or a window's number and document."""
    if isinstance(item, dict) and "name" in item:
        return quoted(str(item["name"]), 40)
    if isinstance(item, dict) and "document" in item:
        return f"{number}, document {quoted(str(item['document']), 40)}"
    return str(number)


def _brief(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    return quoted(json.dumps(value, sort_keys=True), 60).strip("'")
