"""Audit checkpoints of a running training, each audit in a process of its own.

    gate = CheckpointGate("base.ckpt", "probes.yaml", "gates/", run="sft-640", stop_when="intervene")
    for step in range(steps):
        ...
        if saved and gate(checkpoint, step):   # True: stop
            break
    gate.finish()

The training's process never loads a checkpoint, and never waits unless `wait` is set. It starts `atlas audit` with its
own interpreter, one audit at a time, and reads finished audits when the next checkpoint comes. An audit ends with the
training that started it, however the training ends. Torch-free.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moe_atlas.errors import VERDICT_EXIT, AtlasError, UsageError
from moe_atlas.ledger.store import DEFAULT_RUNS
from moe_atlas.system.parent_process import named_parent
from moe_atlas.text import duration, shown
from moe_atlas.verdict.predicates import structural_verdict
from moe_atlas.verdict.qualifications import in_words

StopWhen = Literal["never", "fail", "intervene"]
STOP_WHEN: tuple[StopWhen, ...] = ("never", "fail", "intervene")
IMPATIENT = 10.0  # seconds before `finish` says for the first time what it waits for
LAST_LINE = 4096  # bytes at the end of a log in which its last line is looked for
SAY_EVERY = 30.0  # seconds between two such lines
logger = logging.getLogger("moe_atlas.gate")


@dataclass(frozen=True)
class GateResult:
    """A finished gate.

    Attributes:
        step: training step of the checkpoint.
        checkpoint: the audited checkpoint.
        receipt: path of the receipt; the file does not exist if the audit failed to run.
        exit_code: exit code of `atlas audit`; None if it could not be started.
        verdict: `pass`, `fail` or `inconclusive`; None without a receipt.
        message: the first reason, or the error.
        seconds: duration of the audit.
        structure: the verdict on atlas and damage alone; a task that is not reached yet stops no training.
        qualified: what restricts the meaning of the verdict, by code.
    """

    step: int
    checkpoint: Path
    receipt: Path
    exit_code: int | None
    verdict: str | None
    message: str
    seconds: float
    structure: str | None = None
    qualified: tuple[str, ...] = ()


@dataclass
class _Running:
    step: int
    checkpoint: Path
    receipt: Path
    log: Path
    process: subprocess.Popen[bytes]
    started: float

    def age(self) -> float:
        """Return the seconds since the audit started."""
        return time.monotonic() - self.started


@dataclass
class CheckpointGate:
    """Runs a gate at every checkpoint of a training, and says when to stop.

    A gate that could not run never stops a training and never passes silently: it is logged as an error and stands in
    `results`.

    Attributes:
        base: the checkpoint with which every gate compares.
        probe: registered probe file.
        receipts: folder for the receipts ``gate-<step>.json`` and for the audits' output ``gate-<step>.log``.
        run: record every gate in this run's ledger.
        runs: the folder that holds the runs.
        stop_when: `fail` stops if atlas or damage FAIL, `intervene` if the run's escalation rule says intervene (needs
            `run`), `never` only warns. A task that is not reached yet stops nothing.
        wait: wait for each gate before the training goes on.
        threads: CPU threads of the audit.
        niceness: added to the audit's niceness, so that the training keeps its cores.
        arguments: further arguments of `atlas audit`, such as ``("--device", "cuda")``.
        accept_config_keys: keys of config.json that nothing reads, each with its accepted value; recorded.
        results: finished gates, in order.

    Raises:
        UsageError: E_GATE for an unknown policy, or `intervene` without a run.
    """

    base: str | os.PathLike[str]
    probe: str | os.PathLike[str]
    receipts: str | os.PathLike[str]
    run: str | None = None
    runs: str | os.PathLike[str] = DEFAULT_RUNS
    stop_when: StopWhen = "fail"
    wait: bool = False
    threads: int = 1
    niceness: int = 10
    arguments: tuple[str, ...] = ()
    accept_config_keys: Mapping[str, Any] = field(default_factory=dict)
    results: list[GateResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.stop_when not in STOP_WHEN:
            hint = f"one of {', '.join(STOP_WHEN)}"
            raise UsageError("E_GATE", "stop_when", f"cannot be {shown(str(self.stop_when))}", hint)
        if self.stop_when == "intervene" and self.run is None:
            problem = "intervene reads a run's history, and no run is named"
            raise UsageError("E_GATE", "stop_when", problem, "add run='name', or stop_when='fail'")
        self._waiting: deque[tuple[Path, int]] = deque()
        self._running: _Running | None = None
        self._stop = False

    def __call__(self, checkpoint: str | os.PathLike[str], step: int) -> bool:
        """Start the gate of a checkpoint that is complete on disk; return True if the training should stop.

        Without `wait` the call returns at once with the decision of the gates finished so far. While a gate is running,
        further checkpoints queue up; keep them on disk until their gates are done.
        """
        self._waiting.append((Path(checkpoint), step))
        if self.wait:
            return self.finish()
        return self.poll()

    def poll(self) -> bool:
        """Collect a finished gate and start the next, without waiting; return True if the training should stop."""
        while self._running is not None or self._waiting:
            if self._running is None:
                self._start(*self._waiting.popleft())
            elif self._running.process.poll() is None:
                break
            else:
                self._collect()
        return self._stop

    def finish(self, timeout: float | None = None) -> bool:
        """Wait for every started or queued gate, and say what it waits for; return True if the training should stop.

        Args:
            timeout: seconds for each gate from this call or from its start, whichever is later; a gate that takes
                longer is killed and counts as not carried out.
        """
        self.poll()
        while self._running is not None:
            self._await(self._running, timeout)
            self.poll()
        return self._stop

    def _await(self, running: _Running, timeout: float | None) -> None:
        """Wait for a running audit, kill it when its time is up, and say what it does now and then."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        patience = IMPATIENT
        while (left := until - time.monotonic()) > 0:
            try:
                running.process.wait(min(patience, left))
                return
            except subprocess.TimeoutExpired:
                patience = SAY_EVERY
                self._say_waiting(running)
        logger.error("gate at step %d: killed after %s", running.step, duration(running.age()))
        running.process.kill()
        running.process.wait()

    def _say_waiting(self, running: _Running) -> None:
        # A warning, because logging hides anything less from a script that has not set it up, and it seems to hang.
        queue = f"; {len(self._waiting)} more in the queue" if self._waiting else ""
        doing = _last_line(running.log)
        logger.warning(
            "waiting for the gate at step %d: %s has run for %s%s%s; log: %s",
            running.step,
            shown(str(running.checkpoint)),
            duration(running.age()),
            f" ({doing})" if doing else "",
            queue,
            shown(str(running.log)),
        )

    def _start(self, checkpoint: Path, step: int) -> None:
        folder = Path(self.receipts)
        receipt, log = folder / f"gate-{step}.json", folder / f"gate-{step}.log"
        try:
            process = self._launch(checkpoint, receipt, log, step)
        except OSError as error:  # a full disk must not end the training
            self._judge(GateResult(step, checkpoint, receipt, None, None, shown(str(error), 400), 0.0))
            return
        self._running = _Running(step, checkpoint, receipt, log, process, time.monotonic())
        logger.info("gate at step %d: auditing %s (process %d)", step, shown(str(checkpoint)), process.pid)

    def _launch(self, checkpoint: Path, receipt: Path, log: Path, step: int) -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as said:
            return subprocess.Popen(
                self._command(checkpoint, receipt, step),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=_environment(self.threads),
            )

    def _command(self, checkpoint: Path, receipt: Path, step: int) -> list[str]:
        """Return the command line of `atlas audit`, with `nice` because a hook between fork and exec may deadlock."""
        command = ["nice", "-n", str(self.niceness), sys.executable, "-m", "moe_atlas", "audit"]
        command += [os.fspath(self.base), os.fspath(checkpoint), "--probe", os.fspath(self.probe)]
        command += ["--receipt", os.fspath(receipt), "--json", "--threads", str(self.threads)]
        command += self.arguments
        for key, value in self.accept_config_keys.items():
            command += ["--accept-config-key", f"{key}={json.dumps(value)}"]
        if self.run is not None:
            command += ["--run", self.run, "--runs", os.fspath(self.runs), "--step", str(step)]
        return command

    def _collect(self) -> None:
        running = self._running
        assert running is not None
        self._running = None
        code = running.process.returncode
        summary, message = _read(running.log)
        verdict = summary.get("verdict")
        carried_out = verdict is not None and code == VERDICT_EXIT.get(verdict)
        result = GateResult(
            step=running.step,
            checkpoint=running.checkpoint,
            receipt=running.receipt,
            exit_code=code,
            verdict=verdict if carried_out else None,
            message=message,
            seconds=running.age(),
            structure=structural_verdict(summary["predicates"]) if carried_out else None,
            qualified=tuple(summary["qualified"]) if carried_out else (),
        )
        self._judge(result)

    def _judge(self, result: GateResult) -> None:
        self.results.append(result)
        if result.verdict is None:
            logger.error("gate at step %d was not carried out: %s", result.step, result.message)
            return
        level = logging.INFO if result.verdict == "pass" else logging.WARNING
        said = in_words(result.verdict, result.qualified)
        logger.log(level, "gate at step %d: %s %s", result.step, said, result.message)
        if self.stop_when == "fail" and result.structure == "fail":
            self._stop = True
        if self.stop_when == "intervene" and self._intervene(result.step):
            self._stop = True
        if self._stop:
            logger.warning("gate at step %d: stop training (%s)", result.step, self.stop_when)

    def _intervene(self, step: int) -> bool:
        from moe_atlas.ledger.history import read_history
        from moe_atlas.ledger.store import Ledger
        from moe_atlas.lifecycle.episodes import RED

        assert self.run is not None
        try:
            last = read_history(Ledger(self.run, Path(self.runs))).last
        except AtlasError as error:
            logger.error("gate at step %d: the run's history cannot be read: %s", step, error)
            return False
        return last is not None and last.colour == RED


def _environment(threads: int) -> dict[str, str]:
    """Return the training's environment without its distributed set-up, with the process id that the audit watches."""
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return kept | {"OMP_NUM_THREADS": str(threads)} | named_parent()


def _read(log: Path) -> tuple[dict[str, Any], str]:
    """Return the audit's JSON summary, if any, and its first reason, its error or its last line of output."""
    from moe_atlas.report.words import gate_sentence
    from moe_atlas.views.judged import EvidenceLine

    try:
        text = log.read_text("utf-8", "replace")
    except OSError as error:
        return {}, shown(str(error), 400)
    try:  # lines of progress precede the summary, and none of them begins with a brace
        found = json.JSONDecoder().raw_decode(text, max(0, f"\n{text}".find("\n{")))[0]
    except ValueError:
        return {}, _last_line(log) or "no output"
    if found.get("error"):
        said = found["error"]
        return found, shown(f"{said['code']} {said['where']}: {said['problem']}", 400)
    return found, gate_sentence(EvidenceLine(found["failed"][0])) if found.get("failed") else ""


def _last_line(log: Path) -> str:
    """Return the last line that an audit has written; nothing if there is none."""
    try:
        with log.open("rb") as said:
            said.seek(max(0, log.stat().st_size - LAST_LINE))
            lines = said.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    written = [line.strip() for line in lines if line.strip()]
    return shown(written[-1].removeprefix("atlas: "), 400) if written else ""
