"""Whole receipts for reports, derived from synthetic facts: no torch, no checkpoint."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from moe_atlas.derivation.derive import derive
from moe_atlas.ledger import Ledger
from moe_atlas.ledger.history import History, read_history
from moe_atlas.ledger.recording import record_receipt
from moe_atlas.receipt.write import write_receipt
from tests.ledger import runs
from tests.receipt import synthetic

HOSTILE = "x<script>alert(1)</script>](http://evil.example)|`rm`@all\x1b[31m\u202e\n::error::x"


def facts(kind: str = "audit", **policy: Any) -> dict[str, Any]:
    """Synthetic facts with everything that an audit records about its checkpoints and its run."""
    made = synthetic.facts(kind)
    made["probe"]["policy"] |= {"resamples": 120} | policy
    for side, found in made["checkpoints"].items():
        found |= {"path": f"/models/{side}.ckpt", "tensors": 21, "bytes": 4096, "bytes_read": 4096}
        found |= {"dtype": ["BF16"], "skipped": []}
    made["timing"] = {"started": "2026-01-02T03:04:05+00:00", "seconds": 1.5}
    made["identity"]["layers"] = [
        {
            "layer": 2, "assignment": "same-index", "match": None, "experts": 8,
            "clones": {"base": [], "tuned": [[3, 5]]}, "init_like": {"base": [1], "tuned": [1, 4]}, "breaches": [],
        }
    ] if kind == "audit" else []  # fmt: skip
    floor = {"delta": 1e-6, "group_delta": 0.0, "coordinate_drift_z": 1e-15, "boundary_drift": 0.0}
    floor |= {"transition_drift": 0.0, "content_drift": 1e-9}
    rows = [{"layer": layer["layer"], **floor} for layer in made["layers"]]
    made["noise_floor"] = {"execution": "order", "layers": rows, "largest_nll_change": 4e-7}
    return made


@cache
def _derived(kind: str, scale: float, stage: str) -> dict[str, Any]:
    made = facts(kind, stage=stage)
    body = derive(made, synthetic.windows(made, seed=3, scale=scale))
    evidence = {"windows": "receipt.windows.safetensors", "sha256": "ab" * 32, "receipt_sha256": "cd" * 32}
    return body | {"evidence": evidence}


def receipt(kind: str = "audit", scale: float = 1.0, stage: str = "chart-preserving") -> dict[str, Any]:
    """A derived receipt; a scale of 1 passes, one of 40 rewrites the atlas."""
    return copy.deepcopy(_derived(kind, scale, stage))


def hostile() -> dict[str, Any]:
    """A receipt in which every name that comes from a file tries to do something."""
    made = facts()
    made["probe"]["name"] = HOSTILE
    for side in ("base", "tuned"):
        made["checkpoints"][side]["path"] = HOSTILE
        made["checkpoints"][side]["family"] = HOSTILE
    for number, domain in enumerate(made["probe"]["domains"]):
        domain["name"] = f"{number}{HOSTILE}$x^$"
    made["weights"]["classes"][HOSTILE] = made["weights"]["classes"]["router"]
    made["identity"]["breaches"] = [{"layer": 2, "kind": HOSTILE, "detail": HOSTILE}]
    made["method"][HOSTILE] = HOSTILE
    made["checkpoints"]["tuned"]["config"] = {HOSTILE: HOSTILE, "eos_token_id": HOSTILE}
    file = {"file": HOSTILE, "bytes": None, "sha256": None, "content": None, "unread": HOSTILE}
    listed = [file | {"kind": "weights"}, file | {"file": f"{HOSTILE}.py", "kind": "code"}]
    made["checkpoints"]["tuned"]["files"]["listed"] = listed
    made["checkpoints"]["tuned"]["tokenizer"] = {"sha256": None, "result": "other-ids", "reason": HOSTILE}
    made["environment"] = {HOSTILE: HOSTILE}
    body = derive(made, synthetic.windows(made, seed=3))
    return body | {"evidence": receipt()["evidence"]}


def on_disk(folder: Path, scale: float = 1.0, name: str = "receipt.json") -> Path:
    """A receipt that verifies, with its window data."""
    made = facts()
    path = folder / name
    write_receipt(made, synthetic.windows(made, seed=3, scale=scale), path)
    return path


def history() -> History:
    """A run with a registration replaced, a resume, and gates of every colour."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ledger = Ledger("sft-640", root / "runs")
        ledger.append("registration", {"lock": "x", "lock_sha256": "ab" * 32, "predecessor": None})
        runs.write(ledger, root / "b.json", kind="baseline")
        record_receipt(ledger, root / "b.json", step=0)
        for number, scale in enumerate((1.0, 30.0, 31.0, 32.0, 33.0)):
            runs.gate(ledger, root / f"{number}.json", step=100 * number + 100, seed=number, scale=scale)
        ledger.append("registration", {"lock_sha256": "cd" * 32, "predecessor": {"sha256": "ab" * 32}})
        runs.write(ledger, root / "r.json", kind="baseline")
        record_receipt(ledger, root / "r.json", step=700, reason=HOSTILE)
        return read_history(ledger)
