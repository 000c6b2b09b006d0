"""One of several processes that share every audit listed in a file: `ranks_worker.py CASES FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

from moe_atlas.auditing import run
from moe_atlas.auditing.layer.batches import partition
from moe_atlas.auditing.processes.group import Group
from moe_atlas.auditing.processes.join import joined
from moe_atlas.options import AuditOptions, Place
from moe_atlas.receipt.token_file import TOKEN_FILE
from moe_atlas.receipt.window_file import encode_windows
from moe_atlas.receipt.write import as_arrays
from moe_atlas.replay import loss
from moe_atlas.token_arrays import split

BATCH = 500  # tokens; small, so that small probes have several batches
PART = 20  # entries of the vocabulary that pass together, of 48


def measured(
    base: str, tuned: str | None, probe: str, options: dict, group: Group | None = None
) -> tuple[dict, dict]:
    """An audit in small batches and parts; the option `held_tokens` says how many tokens pass a layer together."""
    options = dict(options)
    held = options.pop("held_tokens", 1 << 20)
    with (
        patch.object(run, "partition", partial(partition, limit=BATCH)),
        patch.object(loss, "PART", PART),
        patch.object(run.memory, "held_tokens", lambda *_: held),
    ):
        return run.measure(Path(base), tuned and Path(tuned), Path(probe), AuditOptions(**options), group)


def keep(folder: Path, name: str, facts: dict, arrays: dict) -> None:
    """The facts, the window arrays and the token arrays of an audit."""
    windows, tokens = split(arrays)
    (folder / f"{name}.json").write_text(json.dumps(facts))
    (folder / f"{name}.windows").write_bytes(encode_windows(as_arrays(windows)) + TOKEN_FILE.encode(tokens))


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    place = Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    with joined(place) as group:
        for name, (base, tuned, probe, options) in cases.items():
            found = measured(base, tuned, probe, options | {"place": place}, group)
            if group.leads:
                keep(folder, name, *found)
        group.leave(True)


if __name__ == "__main__":
    main()
