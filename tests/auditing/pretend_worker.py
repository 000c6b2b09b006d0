"""Audits pairs on the CPU and on the device that is none; in a process of its own, because that device stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests import pairs, pretend
from tests.auditing.device_pairs import BUILD, moved, probe
from tests.auditing.test_engine import assert_same


def main(root: Path, names: list[str]) -> None:
    """For each pair, or each family's, print what would have made the processor wait, if both audits are the same."""
    probes = probe(root)
    for name in names:
        base, tuned, options = BUILD.get(name, moved(name))(root / name)
        plain = pairs.audited(base, tuned, probes, **options)
        pretend.waited.clear()
        other = pairs.audited(base, tuned, probes, device=pretend.DEVICE, **options)
        assert other[0]["method"]["device"] == pretend.DEVICE
        assert_same(plain, other)
        assert plain[0]["noise_floor"] == other[0]["noise_floor"]
        print(json.dumps({"pair": name} | +pretend.waited), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
