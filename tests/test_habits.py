"""What people and tools expect of any package: a licence, types for those who import it, checks before a commit."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_licence_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS AND CONDITIONS"):
        assert part in text
    assert "Copyright The atlas authors\n" in text
    assert "[name of copyright owner]" not in text


def test_type_checkers_of_others_may_read_our_types() -> None:
    assert resources.files("moe_atlas").joinpath("py.typed").is_file()


def test_what_runs_before_a_commit_is_what_make_lint_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in local["hooks"]]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    lines = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert entries == [line.removesuffix(" .").removesuffix(" --check") for line in lines]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
