"""Can the tests fail? Mutation testing of what a gate rests on: verdict, header parser, ledger, exit codes.

    python -m scripts.mutants [--target NAME] [--sample N] [--seed N]

Each mutant is a copy of the package with one operator, constant, condition or raise changed. It is killed when the
target's tests fail on it, or run past their time. Survivors are listed with their line, to be explained or killed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/moe_atlas"
TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Target:
    """What is mutated and which tests must notice."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    without: str = ""


TARGETS = {
    "verdict": Target(
        (
            "verdict/gates/gate.py",
            "verdict/rewrite.py",
            "verdict/damage.py",
            "verdict/task.py",
            "verdict/success.py",
            "verdict/attempts.py",
            "verdict/sameness.py",
            "verdict/predicates.py",
        ),
        ("tests/verdict/test_predicates.py",),
    ),
    "header": Target(
        ("checkpoint/headers/header.py", "checkpoint/headers/header_json.py"),
        ("tests/checkpoint/test_header.py",),
        "hostile_header or real_table",
    ),
    "ledger": Target(
        ("ledger/chain.py", "ledger/receipts.py", "ledger/store.py"),
        ("tests/ledger/test_chain.py", "tests/ledger/test_store.py", "tests/ledger/test_history.py"),
        "kill_9 or Machine",
    ),
    "exit codes": Target(
        ("errors.py", "cli/receipts/verify.py", "cli/runs/gate.py", "ledger/history.py"),
        (
            "tests/ledger/test_history.py",
            "tests/receipt/test_write_verify.py",
            "tests/attestation/test_attest.py",
        ),
        "byte_change or junk or failed_write",
    ),
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.LShift: ast.RShift, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every way in which one node can be wrong: what it is called, and the node to put in its place."""
    if isinstance(node, ast.Compare):
        for n, operator in enumerate(node.ops):
            other = COMPARISONS[type(operator)]()
            ops = [*node.ops[:n], other, *node.ops[n + 1 :]]
            yield (
                f"{type(operator).__name__} → {type(other).__name__}",
                ast.Compare(node.left, ops, node.comparators),
            )
    elif isinstance(node, ast.BoolOp):
        yield "and ↔ or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_annotation(node):
        other_operator = ARITHMETIC[type(node.op)]()
        yield f"{type(node.op).__name__} changed", ast.BinOp(node.left, other_operator, node.right)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield f"{node.value} → {not node.value}", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} → {node.value + 1}", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Raise):
        yield "raise dropped", ast.Pass()
    elif isinstance(node, ast.If):
        yield "condition negated", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.IfExp):
        yield "condition negated", ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def _is_annotation(node: ast.BinOp) -> bool:
    """``int | None`` is no arithmetic."""
    return isinstance(node.op, ast.BitOr)


class Replace(ast.NodeTransformer):
    """Put one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Replace the node sought, wherever it is."""
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


@dataclass(frozen=True)
class Mutant:
    """One wrong copy of a file."""

    file: str
    line: int
    change: str
    source: str


def mutants(file: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    text = (PACKAGE / file).read_text()
    count = sum(1 for node in ast.walk(ast.parse(text)) for _ in variants(node))
    for number in range(count):
        tree = ast.parse(text)
        pairs = ((node, change, new) for node in ast.walk(tree) for change, new in variants(node))
        node, change, new = next(pair for n, pair in enumerate(pairs) if n == number)
        line = getattr(node, "lineno", 0)
        yield Mutant(
            file, line, change, ast.unparse(ast.fix_missing_locations(Replace(node, new).visit(tree)))
        )


def passes(target: Target, overlay: Path) -> bool:
    """Run the target's tests on the overlaid package in a forked child; a run past its time counts as a failure."""
    process = os.fork()
    if process == 0:
        _run_tests(target, overlay)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def _run_tests(target: Target, overlay: Path) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.environ |= {"PYTHONPATH": f"{overlay}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[:0] = [str(overlay), str(ROOT)]
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    import pytest

    deselected = f"not ({target.without})" if target.without else ""
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow"]
    code = pytest.main([*options, "-k", deselected, *target.tests])
    os._exit(int(code))


def examine(name: str, target: Target, sample: int, seed: int) -> None:
    """Print the score of one target, and its survivors."""
    found = [mutant for file in target.files for mutant in mutants(file)]
    chosen = found if sample >= len(found) else random.Random(seed).sample(found, sample)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder)
        shutil.copytree(PACKAGE, overlay / "moe_atlas", ignore=shutil.ignore_patterns("__pycache__"))
        if not passes(target, overlay):
            raise SystemExit(f"{name}: the tests fail without a mutation")
        for mutant in chosen:
            place = overlay / "moe_atlas" / mutant.file
            whole = place.read_text()
            place.write_text(mutant.source)
            if passes(target, overlay):
                survivors.append(mutant)
                print(f"  survived: {mutant.file}:{mutant.line} {mutant.change}", flush=True)
            place.write_text(whole)
    killed = len(chosen) - len(survivors)
    share = f"{killed / len(chosen):.0%}"
    print(f"{name}: {killed} of {len(chosen)} killed ({share}), of {len(found)} possible", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument(
        "--sample", type=int, default=60, help="mutants of each target; all when it has fewer"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # What every child needs, imported once; never the package itself.
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401

    for name in arguments.target or TARGETS:
        examine(name, TARGETS[name], arguments.sample, arguments.seed)


if __name__ == "__main__":
    main()
