"""A stopped command says one line, ends in the signal's code and leaves nothing behind."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.oracle import tiny
from tests.support import pairs

LINE = "atlas: stopped before a result was acknowledged\n"
STOPS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
HEARD = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored
)

AMID_EXPERTS = """\
import gc, os, sys
from moe_atlas import cli
from moe_atlas.auditing import loop
from moe_atlas.errors import IntegrityError
from moe_atlas.system import interruption
real, seen = loop.BatchPass.add, []

def add(batch_pass, expert):
    seen.append(expert.index)
    if len(seen) == 3:
        {strike}
    return real(batch_pass, expert)

loop.BatchPass.add = add
interruption.listen()
code = cli.run(sys.argv[1:])
gc.collect()  # whatever was left to finalisers speaks now
sys.exit(code)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stopping")
    base = tiny.save("qwen3_moe", root / "base", seed=5)
    pairs.variant(base, root / "tuned", pairs.jitter(3e-3, lambda name: "norm" not in name), shards=2)
    pairs.probe(root / "probe")
    return root


def command(place: Path, folder: Path, *start: str) -> list[str]:
    words = [sys.executable, *start, "audit", str(place / "base"), str(place / "tuned"), "--quiet"]
    return [*words, "--probe", str(place / "probe/probes.yaml"), "--receipt", str(folder / "receipt.json")]


def program(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEARD + text, *arguments], capture_output=True, text=True, check=False
    )


@STOPS
def test_amid_the_experts(place: Path, tmp_path: Path, number: signal.Signals) -> None:
    text = HEARD + AMID_EXPERTS.format(strike=f"os.kill(os.getpid(), {int(number)})")
    found = subprocess.run(command(place, tmp_path, "-c", text), capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (128 + number, LINE)
    assert list(tmp_path.iterdir()) == []


def test_an_error_amid_the_experts_is_one_line_too(place: Path, tmp_path: Path) -> None:
    text = AMID_EXPERTS.format(strike='raise IntegrityError("E_CHANGED", "x", "is another", "again")')
    found = subprocess.run(command(place, tmp_path, "-c", text), capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (5, "atlas: E_CHANGED x: is another; again\n")


@pytest.mark.slow
def test_at_twenty_random_moments(tmp_path: Path) -> None:
    """Of a model whose experts take seconds to read."""
    larger = {"hidden_size": 256, "num_hidden_layers": 6, "moe_intermediate_size": 256, "num_experts": 64}
    base = tiny.save("qwen3_moe", tmp_path / "base", seed=5, **larger)
    pairs.variant(base, tmp_path / "tuned", pairs.jitter(3e-3, lambda name: "norm" not in name), shards=2)
    pairs.probe(tmp_path / "probe")
    out = tmp_path / "out"
    out.mkdir()
    began = time.monotonic()
    subprocess.run(command(tmp_path, tmp_path, "-m", "moe_atlas"), check=False)
    whole, generator, stopped = time.monotonic() - began, random.Random(0), 0
    for turn in range(20):
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        process = subprocess.Popen(
            command(tmp_path, out, "-m", "moe_atlas"), stderr=subprocess.PIPE, text=True
        )
        time.sleep(generator.uniform(0.1, 0.9) * whole)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        if process.returncode < 128:  # it was done already
            (out / "receipt.json").unlink()
            (out / "receipt.windows.safetensors").unlink()
            assert said == ""
            continue
        stopped += 1
        assert (process.returncode, said) == (128 + number, LINE)
        assert list(out.iterdir()) == []
    assert stopped > 10


@STOPS
def test_while_the_command_line_is_being_imported(number: signal.Signals) -> None:
    text = """\
import os, sys
class Strike:
    def find_spec(self, name, *rest):
        if name == "typer":
            os.kill(os.getpid(), int(sys.argv[1]))
sys.meta_path.insert(0, Strike())
from moe_atlas.__main__ import main
main()
"""
    found = program(text, str(int(number)))
    assert (found.returncode, found.stderr) == (128 + number, LINE)


def test_what_is_raised_in_a_finaliser_is_raised_again_outside() -> None:
    text = """\
import time
from moe_atlas.system import interruption
class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)
interruption.listen()
try:
    Held()
    time.sleep(20)
except interruption.Stopped as stop:
    print("stopped by", stop.number)
"""
    found = program(text)
    assert (found.returncode, found.stdout, found.stderr) == (0, "stopped by 15\n", "")


def test_what_else_a_finaliser_raises_is_shown() -> None:
    text = """\
from moe_atlas.system import interruption
class Held:
    def __del__(self):
        raise ValueError("kept")
interruption.listen()
Held()
"""
    assert "ValueError: kept" in program(text).stderr


@pytest.mark.parametrize(("patience", "code", "said"), [(60.0, 0, "undone\n"), (-1.0, 143, "")])
def test_asked_twice_at_once_it_undoes_first_asked_again_later_it_ends(
    patience: float, code: int, said: str
) -> None:
    text = """\
import sys
from moe_atlas.system import interruption
interruption.PATIENCE = float(sys.argv[1])
interruption.listen()
try:
    signal.raise_signal(signal.SIGINT)
except interruption.Stopped:
    signal.raise_signal(signal.SIGTERM)
    print("undone")
"""
    found = program(text, str(patience))
    assert (found.returncode, found.stdout) == (code, said)
    assert found.stderr == ("" if code == 0 else LINE)


def test_once_the_code_is_known_nothing_changes_it() -> None:
    text = """\
import sys
from moe_atlas import cli
cli._flushes = lambda stream: signal.raise_signal(signal.SIGTERM) or True
sys.argv = ["atlas", "families"]
cli.main()
"""
    found = program(text)
    assert (found.returncode, found.stderr) == (0, "")


def test_an_ignored_signal_stays_ignored() -> None:
    text = """\
from moe_atlas.system import interruption
signal.signal(signal.SIGINT, signal.SIG_IGN)
interruption.end_at_once()
interruption.listen()
signal.raise_signal(signal.SIGINT)
print("went on")
"""
    assert program(text).stdout == "went on\n"
