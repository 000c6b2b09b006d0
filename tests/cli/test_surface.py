"""The command line as pipelines know it: commands and options are frozen, every help fits a screen with an example."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import moe_atlas
from moe_atlas.calibration.healthy import ACCEPTABLE
from moe_atlas.cli import COMMANDS, app, run
from moe_atlas.cli.probes.calibrate import Acceptable
from moe_atlas.derivation.derive import DERIVATION
from moe_atlas.errors import NEXT_STEPS, Exit
from tests.support import golden

SCREEN = (80, 45)
ERRORS = {"InputRefused", "UsageError", "IntegrityError", "ResourceExhausted"}


def choices(command: Any, parameter: Any) -> str:
    """What an option may say, where that is a fixed list."""
    found = re.search(r"[\w-]+(\|[\w-]+)+", (parameter.get_help_record(typer.Context(command)) or ("",))[0])
    return "" if found is None else found[0]


def surface() -> str:
    group = typer.main.get_command(app)
    lines = []
    for name in COMMANDS:
        command = group.commands[name]
        lines.append(f"atlas {name}")
        for parameter in command.params:
            placeholder = parameter.metavar or choices(command, parameter)
            dashed = parameter.opts[0].startswith("-")
            spelled = f"{' '.join(sorted(parameter.opts))} {placeholder}".rstrip() if dashed else placeholder
            marks = [
                *(["required"] if parameter.required else []),
                *(["repeatable"] if parameter.multiple or parameter.nargs == -1 else []),
                *(["flag"] if getattr(parameter, "is_flag", False) else []),
            ]
            default = (
                ""
                if parameter.default is None
                or parameter.default is False
                or parameter.required
                or callable(parameter.default)
                else f" = {parameter.default}"
            )
            lines.append(f"  {spelled}{default}" + (f" ({', '.join(marks)})" if marks else ""))
    return "\n".join(lines) + "\n"


def test_commands_and_options_are_frozen():
    golden.check("cli.txt", surface())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_fits_a_screen_and_shows_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(SCREEN[0]))
    monkeypatch.setenv("TERMINAL_WIDTH", str(SCREEN[0]))
    assert run([command, "--help"] if command else ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN[1]
    assert max(map(len, lines)) <= SCREEN[0]
    assert any(f"Example: atlas {command}".rstrip() in line for line in lines)
    assert not [line for line in lines if "<" in line.replace("<=", "") or "{" in line]
    assert not [line for line in lines[1:] if "..." in line]


@pytest.mark.parametrize("arguments", [["--help"], [], *([command, "--help"] for command in COMMANDS)])
def test_no_help_imports_anything_heavy(arguments):
    """A fresh interpreter, so that no other test has imported it already."""
    heavy = "{'torch', 'matplotlib', 'numpy', 'transformers', 'rich', 'jinja2', 'yaml'}"
    code = f"import sys; from moe_atlas.cli import run; run({arguments}); print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n")


def test_without_a_command_atlas_shows_its_help_and_ends_in_the_usage_code(capsys):
    assert run(["--help"]) == 0
    wanted = capsys.readouterr().out
    assert run([]) == Exit.USAGE
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", wanted)
    assert "\\n" not in said.err


def test_the_version_names_the_rules_too(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"atlas {moe_atlas.__version__} (derivation {DERIVATION})\n"


CHOICES = [
    ("--dtype", ["auto", "float32", "bfloat16"]),
    ("--router", ["float32", "native"]),
    ("--device", ["cpu", "cuda"]),
    ("--noise-floor", ["order", "float32", "bfloat16"]),
]


@pytest.mark.parametrize(("option", "allowed"), CHOICES)
def test_help_and_error_list_what_an_option_may_say(option, allowed, capsys):
    assert run(["audit", "--help"]) == 0
    assert re.search(rf"  {option} +{', '.join(allowed)}: ", capsys.readouterr().out)
    assert run(["audit", "a", "b", "--probe", "c", option, "odd"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert re.fullmatch(r"atlas: E_USAGE Invalid value for .*'odd' is not one of .*\n", said)
    assert all(f"'{choice}'" in said for choice in allowed)


def test_what_calibrate_accepts_is_what_the_rule_knows(capsys):
    assert [name.value for name in Acceptable] == list(ACCEPTABLE)
    assert run(["calibrate", "--healthy", "a", "--out", "b", "--accept", "odd"]) == Exit.USAGE
    assert "'failed', 'one-run'" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["foo", "", "-1GiB", "2 GB more", "1e9"])
def test_a_wrong_size_is_answered_with_an_example(size, capsys):
    assert run(["plan", "a", "b", "--probe", "c", f"--memory={size}"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert (
        said
        == f"atlas: E_SIZE --memory {size}: is not a size; write it like --memory 2GiB or --memory 1500M\n"
    )


def test_a_mistyped_option_is_answered_with_the_right_one(capsys):
    assert run(["audit", "a", "b", "--prob", "c"]) == Exit.USAGE
    assert "--probe" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    environment = {
        "PATH": "/usr/bin:/bin",
        "_ATLAS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "atlas ver",
        "COMP_CWORD": "1",
    }
    environment |= {"_TYPER_COMPLETE_ARGS": "atlas ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment |= {"PYTHONPATH": str(Path(moe_atlas.__file__).parents[1])}
    command = [sys.executable, "-c", "from moe_atlas.cli import app; app(prog_name='atlas')"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert "verify" in out
    assert "audit" not in out.replace("auditor", "")


def raised() -> list[tuple[str, int, ast.Call]]:
    root = Path(moe_atlas.__file__).parent
    return [
        (str(file.relative_to(root)), node.lineno, node)
        for file in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
    ]


def test_every_error_says_what_to_do_next():
    found = raised()
    assert len(found) > 80
    silent = [
        f"{file}:{line}"
        for file, line, call in found
        if len(call.args) + len(call.keywords) < 4
        and not (isinstance(call.args[0], ast.Constant) and call.args[0].value in NEXT_STEPS)
    ]
    assert silent == []


def test_no_next_step_is_kept_that_no_error_needs():
    codes = {
        node.value for _, _, call in raised() for node in call.args[:1] if isinstance(node, ast.Constant)
    }
    assert set(NEXT_STEPS) <= codes
