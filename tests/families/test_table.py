"""`atlas families` and docs/families.md say what the registry holds now."""

from __future__ import annotations

import json

from moe_atlas.cli import run
from moe_atlas.loading.registry import FAMILIES
from scripts import families
from scripts.oracle import tiny


def test_the_table_and_the_page_are_current():
    assert families.main(["--check"]) == 0, "run `python -m scripts.families`"


def test_every_family_is_run_by_the_tests_or_reads_as_one_that_is():
    run_by_tests = {model_type for model_type, _ in tiny.CASES.values()}
    assert FAMILIES.keys() == run_by_tests | families.SAME_AS.keys()


def test_the_command_prints_every_family(capsys):
    assert run(["families", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model_type"] for row in found["families"]] == sorted(FAMILIES)
    assert run(["families"]) == 0
    assert "longcat_flash" in capsys.readouterr().out
