"""The packages import each other as CONTRIBUTING says, one way, and none of them is crowded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import moe_atlas

SOURCE = Path(moe_atlas.__file__).parent
CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
EVERYBODYS = {"errors", "text", "version"}
ENTRANCES = {"__init__", "__main__"}
TORCH_FREE = (
    "receipt",
    "derivation",
    "verdict",
    "statistics",
    "lifecycle",
    "ledger",
    "report",
    "explanation",
)
CROWDED = 13
MODULES = {
    path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imports(path: Path) -> Iterator[str]:
    """Every module of the package that a file imports anywhere in it, as a path."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "moe_atlas":
            base = "/".join(node.module.split(".")[1:])
            for name in node.names:
                inner = f"{base}/{name.name}".lstrip("/")
                yield inner if inner in MODULES else base or "__init__"
        elif isinstance(node, ast.Import):
            yield from (
                "/".join(a.name.split(".")[1:]) for a in node.names if a.name.startswith("moe_atlas.")
            )


def package(module: str) -> str:
    """The folder of a module; modules of the top level stand for themselves."""
    path = MODULES[module].relative_to(SOURCE)
    return path.parent.as_posix() if len(path.parts) > 1 else path.stem


GRAPH = {module: {other for other in imports(path) if other != module} for module, path in MODULES.items()}


def between_packages() -> dict[str, set[str]]:
    """What each package imports of others."""
    found: dict[str, set[str]] = {package(module): set() for module in MODULES}
    for module, others in GRAPH.items():
        found[package(module)] |= {package(other) for other in others} - {package(module)} - EVERYBODYS
    return found


def stated() -> dict[str, set[str]]:
    """The table of CONTRIBUTING, in its order."""
    rows = re.findall(r"^\| `([\w/]+)` \| .* \| ([^|]*) \|$", CONTRIBUTING, re.M)
    return {name: set(re.findall(r"`([\w/]+)`", others)) for name, others in rows}


def test_every_package_imports_what_contributing_says():
    found = {
        name: others for name, others in between_packages().items() if name not in EVERYBODYS | ENTRANCES
    }
    assert found == stated()


def test_the_table_goes_from_the_ground_floor_up():
    order = list(stated())
    upward = {
        (name, other)
        for name, others in stated().items()
        for other in others
        if order.index(other) >= order.index(name)
    }
    assert not upward


@pytest.mark.parametrize("graph", [GRAPH, between_packages()], ids=["modules", "packages"])
def test_nothing_imports_itself_by_a_detour(graph: Mapping[str, set[str]]):
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_the_life_of_an_audit_names_what_is_there():
    page = (Path(__file__).parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    places = re.findall(r"`([a-z0-9_]+(?:/[a-z0-9_]*)*(?:\.py|/))`", page)
    assert len(places) > 25
    assert [place for place in places if not (SOURCE / place).exists()] == []
    for name, place in re.findall(r"`(\w+)`(?: and `\w+`)? in `([\w/]+\.py)`", page):
        assert re.search(
            rf"^(def {name}\b|class {name}\b|{name}\b.*=)", (SOURCE / place).read_text(), re.M
        ), name


def test_only_the_package_of_checkpoints_knows_how_a_folder_is_read():
    folders = {"checkpoint/folders", "checkpoint/shard", "checkpoint/uncached"}
    known = {package(module) for module, others in GRAPH.items() if others & folders}
    assert known == {"checkpoint", "checkpoint/training"}


def test_no_folder_is_crowded():
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in MODULES.values()}}
    crowded = {folder.relative_to(SOURCE).as_posix() for folder, size in sizes.items() if size > CROWDED}
    assert crowded <= {"families"}


def test_what_verifies_and_reports_never_reaches_torch():
    reached, coming = set(), [module for module in MODULES if module.split("/")[0] in TORCH_FREE]
    while coming:
        module = coming.pop()
        if module not in reached:
            reached.add(module)
            coming += GRAPH[module]
    with_torch = {m for m in reached if re.search(r"^(from|import) torch\b", MODULES[m].read_text(), re.M)}
    assert not with_torch


def test_scripts_import_nothing_of_the_tests():
    scripts = Path(__file__).parents[1] / "scripts"
    found = [
        path.name
        for path in scripts.rglob("*.py")
        if re.search(r"^\s*(from|import) tests\b", path.read_text(), re.M)
    ]
    assert found == []
