from __future__ import annotations

from pathlib import Path

import pytest
from probe_files import PROBES, prose, write_rows


@pytest.fixture
def probe_file(tmp_path: Path) -> Path:
    for number, name in enumerate(("prose", "code", "canary")):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": prose(100 * number + n, 60 + n)} for n in range(8)])
    rows: list[dict[str, object]] = [
        {"prompt": f"say {n}", "completion": f"{n}!", "id": f"t{n}"} for n in range(8)
    ]
    write_rows(tmp_path / "sft.jsonl", rows)
    path = tmp_path / "probes.yaml"
    path.write_text(PROBES)
    return path
