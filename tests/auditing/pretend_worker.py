"""Audits pairs on the CPU and on the device that is none; in a process of its own, because that device stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from moe_atlas.checkpoint import reader
from tests.auditing.device_pairs import BUILD, moved, probe
from tests.auditing.test_engine import assert_same
from tests.support import pairs, pretend

fresh = reader._fresh_bytes


def counted(nbytes: int, *, page_locked: bool) -> torch.Tensor:
    """Memory that is not page-locked, which no machine without a GPU can give; counted where it should be."""
    pretend.counts["page-locked"] += page_locked
    return fresh(nbytes, page_locked=False)


def main(root: Path, names: list[str]) -> None:
    """For each pair, or each family's, print what was counted on the device, if both audits are the same."""
    reader._fresh_bytes = counted
    probes = probe(root)
    for name in names:
        base, tuned, options = BUILD.get(name, moved(name))(root / name)
        plain = pairs.audited(base, tuned, probes, **options)
        assert not pretend.counts["page-locked"]
        other = pairs.audited(base, tuned, probes, device=pretend.DEVICE, **options)
        assert other[0]["method"]["device"] == pretend.DEVICE
        assert_same(plain, other)
        assert plain[0]["noise_floor"] == other[0]["noise_floor"]
        print(json.dumps({"pair": name} | +pretend.counts), flush=True)
        pretend.counts.clear()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
