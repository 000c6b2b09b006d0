"""A receipt of another form ends every command that is given it in one plain line, and nothing is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from moe_atlas.cli import app, run
from moe_atlas.errors import Exit
from moe_atlas.ledger import Ledger
from moe_atlas.receipt.canonical import encode_receipt, receipt_digest
from scripts.oracle import tiny
from tests.ledger import runs
from tests.support import pairs

RUN = "sft"
MISSING: Any = ...
Place = tuple[str | int, ...]
MUTILATED: dict[str, tuple[Place, Any, str]] = {
    "a list for an object": (("probe",), [], "probe: expected object, found []"),
    "null layers": (("layers",), None, "layers: expected array, found None"),
    "an object for a list": (("domains",), {}, "domains: expected array, found {}"),
    "a string for a number": (
        ("domains", 0, "nll_base", "estimate"),
        "2.5",
        "domains[0].nll_base.estimate: expected number or null, found '2.5'",
    ),
    "a number for a string": (
        ("checkpoints", "base", "digest"),
        7,
        "checkpoints.base.digest: expected string",
    ),
    "a missing layer number": (("layers", 0, "layer"), MISSING, "layers[0].layer: missing"),
    "a missing policy": (("probe", "policy"), MISSING, "probe.policy: missing"),
    "a list for the evidence": (("evidence",), [], "evidence: expected object, found []"),
}


def _of(*words: str) -> Callable[[Path, Path], list[str]]:
    """The arguments of a command, with its receipt for R, an intact receipt for GOOD and a new file for OUT."""

    def arguments(receipt: Path, place: Path) -> list[str]:
        names = {"R": receipt, "GOOD": place / "good.json", "OUT": receipt.parent / "out.json"}
        names |= {"BASE": place / "base", "PROBE": place / "probe/probes.yaml", "RUNS": place / "runs"}
        return [str(names.get(word, word)) for word in words]

    return arguments


AUDIT = ("audit", "BASE", "BASE", "--probe", "PROBE", "--receipt", "OUT")
COMMANDS = {
    ("verify", "receipt"): _of("verify", "R"),
    ("report", "receipt"): _of("report", "R"),
    ("diff", "first"): _of("diff", "R", "GOOD"),
    ("diff", "second"): _of("diff", "GOOD", "R"),
    ("explain", "receipt"): _of("explain", "R", "--probe", "PROBE"),
    ("falsify", "receipts"): _of("falsify", "GOOD", "R"),
    ("attest", "receipt"): _of("attest", "R", "--checkpoint", "BASE", "-o", "OUT"),
    ("calibrate", "healthy"): _of("calibrate", "--healthy", "R", "--out", "OUT"),
    ("calibrate", "damaged"): _of("calibrate", "--healthy", "GOOD", "--damaged", "R", "--out", "OUT"),
    ("audit", "baseline"): _of(*AUDIT, "--baseline", "R"),
    ("audit", "attempt"): _of(*AUDIT, "--attempt", "R"),
    ("baseline", "previous"): _of(
        "baseline", "BASE", "--probe", "PROBE", "--receipt", "OUT", "--previous", "R"
    ),
    ("plan", "changes_from"): _of("plan", "BASE", "BASE", "--probe", "PROBE", "--changes-from", "R"),
    ("register", "changes_from"): _of("register", "PROBE", "--force", "--changes-from", "R"),
    ("history", "receipts"): _of("history", RUN, "--runs", "RUNS", "--receipts", "R"),
    ("gate", "receipts"): _of("gate", RUN, "--runs", "RUNS", "--receipts", "R"),
}


def taking_receipts() -> Iterator[tuple[str, str]]:
    """Every command of the command line with each of its parameters that take a receipt."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for parameter in command.params:
            if str(parameter.metavar) in ("RECEIPT", "A", "B"):
                yield name, parameter.name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a registered probe set, and a run with one recorded receipt."""
    root = tmp_path_factory.mktemp("mutilated")
    tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.probe(root / "probe")
    runs.gate(Ledger(RUN, root / "runs"), root / "good.json", step=100)
    return root


def mutilated(good: Path, place: Place, value: Any) -> bytes:
    """The bytes of a receipt with one fact changed, sealed again: its form is all that is wrong with it."""
    receipt = json.loads(good.read_bytes())
    changed = copy.deepcopy(receipt)
    here: Any = changed
    for key in place[:-1]:
        here = here[key]
    if value is MISSING:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    if isinstance(changed["evidence"], dict):
        changed["evidence"]["receipt_sha256"] = receipt_digest(changed)
    return encode_receipt(changed)


def test_every_parameter_that_takes_a_receipt_is_given_one() -> None:
    assert set(taking_receipts()) == set(COMMANDS)


@pytest.mark.parametrize("name", MUTILATED)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_is_refused_in_one_line(
    command: tuple[str, str], name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, value, problem = MUTILATED[name]
    receipt = tmp_path / "receipt.json"
    receipt.write_bytes(mutilated(place / "good.json", where, value))
    code = run(COMMANDS[command](receipt, place))
    said = capsys.readouterr()
    assert code in (Exit.REFUSED, Exit.CHANGED)
    assert not (tmp_path / "out.json").exists()
    if command[0] == "verify":  # which lists every mismatch
        assert f"\n  {problem}" in said.out
        return
    line, end = said.err.rsplit("atlas: ")[-1].split("\n")
    assert end == ""
    if command[0] in ("history", "gate"):  # whatever it holds, it is not the receipt that the run recorded
        assert line.startswith("E_LEDGER_CUT")
    else:
        assert line.startswith("E_RECEIPT ")
        assert f"receipt.json: does not verify (1 mismatches), first {problem}" in line
