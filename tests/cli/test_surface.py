"""The command line as pipelines know it: commands and options are frozen, every help fits a screen with an example."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import moe_atlas
from moe_atlas.cli import COMMANDS, app, run
from moe_atlas.errors import NEXT_STEPS
from tests.support import golden

SCREEN = (80, 45)
ERRORS = {"InputRefused", "UsageError", "IntegrityError", "ResourceExhausted"}


def surface() -> str:
    group = typer.main.get_command(app)
    lines = []
    for name in COMMANDS:
        command = group.commands[name]
        lines.append(f"atlas {name}")
        for parameter in command.params:
            placeholder = parameter.metavar or ""
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


def test_no_command_imports_torch_or_matplotlib_to_be_listed():
    heavy = "{'torch', 'matplotlib'}"
    code = f"import sys; from moe_atlas.cli import run; run(['--help']); print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n")


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
