"""One row a pair: what was done, what was measured, what the verdict says; committed as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_atlas.api import Receipt
from moe_atlas.falsification.readings import CHANNELS, QUANTITIES, reading_of
from scripts.lab.corpus import DOMAINS, TASKS
from scripts.lab.families import Family
from scripts.lab.pairs import Pair, all_pairs
from scripts.lab.verdicts import judged_path

FIELDS = (
    *("family", "pair", "kind", "expect", "verdict", "rewrite", "damage", "failed", "open"),
    *(f"forgetting_{domain}" for domain in DOMAINS),
    *("forgetting", "forgetting_worst_low", "forgetting_worst_high", "kl"),
    *(f"nll_{task}" for task in TASKS),
    *QUANTITIES,
    *(f"worst_{channel}" for channel in CHANNELS),
)


def rows(family: Family, root: Path) -> list[dict[str, Any]]:
    """The rows of a family's judged pairs, in the order they are defined."""
    return [
        row_of(family, pair, Receipt.load(path))
        for pair in all_pairs(family)
        if (path := judged_path(family, pair.name, root)).exists()
    ]


def row_of(family: Family, pair: Pair, receipt: Receipt) -> dict[str, Any]:
    """One pair in numbers and words."""
    body = receipt.body
    reading = reading_of(body, pair.name)
    base = [row for row in body["domains"] if row["role"] == "base"]
    tasks = {row["name"]: row["nll_tuned"]["estimate"] for row in body["domains"] if row["role"] == "task"}
    predicates = body["predicates"]
    return {
        "family": family.name,
        "pair": pair.name,
        "kind": pair.kind,
        "expect": pair.expect,
        "verdict": body["verdict"],
        "rewrite": predicates["protected_atlas_rewrite"]["outcome"],
        "damage": predicates["base_domain_damage"]["outcome"],
        "failed": _gates(predicates, "fail"),
        "open": _gates(predicates, "undetermined"),
        **{f"forgetting_{row['name']}": row["nll_increase"]["estimate"] for row in base},
        "forgetting": reading.forgetting,
        "forgetting_worst_low": _largest(base, "low"),
        "forgetting_worst_high": _largest(base, "high"),
        "kl": float(np.mean([row["kl"]["estimate"] for row in base])),
        **{f"nll_{name}": value for name, value in tasks.items()},
        **reading.values,
        **{f"worst_{key}": _worst(body, key) for key in CHANNELS},
    }


def _gates(predicates: Mapping[str, Any], result: str) -> str:
    """The gates that came out so, each once, in their order of severity."""
    found = [
        line["gate"] for one in predicates.values() for line in one["evidence"] if line["result"] == result
    ]
    return " ".join(dict.fromkeys(found))


def _largest(rows_: Iterable[Mapping[str, Any]], bound: str) -> float | None:
    values = [row["nll_increase"][bound] for row in rows_]
    return None if any(value is None for value in values) else max(values)


def _worst(body: Mapping[str, Any], key: str) -> float:
    return max(float(layer["pair"][key]["estimate"]) for layer in body["layers"])


def write_csv(found: list[dict[str, Any]], path: Path) -> None:
    """Numbers to six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in found:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def write_documents(families: Iterable[Family], root: Path, path: Path) -> None:
    """Every judged pair's increase of the NLL in every base document: the real windows of `make coverage`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for family in families:
            for pair in all_pairs(family):
                target = judged_path(family, pair.name, root)
                if target.exists():
                    windows = Receipt.load(target).windows()
                    chosen = windows["windows.domain"] < len(DOMAINS)
                    increase = (windows["output.nll_tuned"] - windows["output.nll_base"])[chosen]
                    writer.writerow([family.name, pair.name, *(f"{value:.5g}" for value in increase)])
