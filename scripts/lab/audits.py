"""Make every pair, audit it with nothing gated, and keep the receipt; what is there already is not made again."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.channels import DRIFTS
from moe_atlas.options import Execution
from moe_atlas.probes.registration import register
from scripts.lab.corpus import DOCUMENTS, DOMAINS, TASK_DOCUMENTS, TASKS, TOKENS, write_sources
from scripts.lab.families import FAMILIES, Family
from scripts.lab.pairs import Pair, all_pairs
from scripts.lab.training import train_base
from scripts.training.checkpoint import Tensors, read, write

RESAMPLES = 400
# A limit that every model meets: the lab judges success itself, over all pairs at once.
ALWAYS = 1000
FLOORS = ("replay-sft-101",)  # the base's noise floor does not depend on the tune: one pair measures it


def probe_text() -> str:
    """The lab's probe file: three base domains, two tasks, every routed layer, no budget."""
    base = "".join(
        f"  - {{name: {name}, role: base, source: {name}.jsonl, documents: {DOCUMENTS}}}\n"
        for name in DOMAINS
    )
    tasks = "".join(
        f"  - {{name: {name}, role: task, source: {name}.jsonl, documents: {TASK_DOCUMENTS}, "
        f"success: {{metric: nll, at_most: {ALWAYS}}}}}\n"
        for name in TASKS
    )
    ungated = "\n".join(f"    {channel.budget}: null" for channel in DRIFTS)
    return f"""\
schema: atlas/probes/v1
name: lab
tokenizer: bytes
windows: {{tokens: {TOKENS}, per_document: 1, seed: 7}}
evaluation: {{experts: active, token_stride: 1, quantile: 0.9}}
protected_layers: all
domains:
{base}{tasks}policy:
  stage: chart-preserving
  confidence: 0.95
  resamples: {RESAMPLES}
  rewrite:
{ungated}
    refinement: {{mu: [1, 1, 0.5], tau: 1}}
    handoff: {{lambda: [1, 0.5]}}
  damage: {{nll: null, document_nll: null, document_share: null}}
"""


def prepare(root: Path) -> Path:
    """Write and register the probe set; return its file."""
    probe = root / "probe" / "probes.yaml"
    if not probe.exists():
        write_sources(probe.parent)
        probe.write_text(probe_text(), encoding="utf-8")
        register(probe, force=True)
    return probe


def base_of(family: Family, root: Path) -> Tensors:
    """The family's base, trained unless it is there."""
    folder = root / family.name / "base"
    if not folder.exists():
        write(train_base(family), family.config, folder)
    return read(folder)


def receipt_of(family: Family, name: str, root: Path) -> Path:
    """Where a pair's receipt lies."""
    return root / "receipts" / family.name / f"{name}.json"


def measure(name: str, root: Path) -> None:
    """Make and audit one family's pairs, in a process of its own."""
    torch.set_num_threads(1)
    run_family(FAMILIES[name], root)


def run_family(family: Family, root: Path) -> None:
    """Make and audit every pair of a family."""
    probe, base = prepare(root), base_of(family, root)
    for pair in all_pairs(family):
        if not receipt_of(family, pair.name, root).exists():
            _run_pair(family, pair, base, probe, root)


def _run_pair(family: Family, pair: Pair, base: Tensors, probe: Path, root: Path) -> None:
    clock, spent = time.monotonic(), time.process_time()
    folder = root / family.name / pair.name
    if not folder.exists():
        write(pair.make(family, base), family.config, folder)
    receipt = receipt_of(family, pair.name, root)
    receipt.parent.mkdir(parents=True, exist_ok=True)
    floor: Execution | None = "order" if pair.name in FLOORS else None
    options = AuditOptions(dtype="float32", threads=1, noise_floor=floor)
    audit(root / family.name / "base", folder, probe, receipt=receipt, options=options)
    wall, cpu = time.monotonic() - clock, time.process_time() - spent
    print(f"  {family.name} {pair.name}: {wall:.0f} s, {cpu:.0f} s of CPU", flush=True)
