"""Work that runs side by side, one thread each: tunes in a pool of processes, and command lines of `atlas`.

One thread a process keeps the cores busy at this size, and makes a tune the same on two cores as on sixty-four.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.training.checkpoint import load, save
from scripts.training.corpus import load_corpus
from scripts.training.loop import tune
from scripts.training.recipes import Tune
from scripts.training.task import load_items

GLANCE = 0.3  # seconds between two looks at the tunes' steps


@dataclass(frozen=True)
class TuneJob:
    """Tune the base into `target`."""

    base: Path
    target: Path
    recipe: Tune

    def run(self, step: Callable[[], None]) -> None:
        """Train and save; `step` is called after each optimiser step."""
        corpus = load_corpus()
        model = load(self.base)
        tune(model, self.recipe, corpus, load_items(corpus)[0], lambda *_: step())
        save(model, self.target)


@dataclass(frozen=True)
class Outcome:
    """A command line of `atlas` that has ended: its exit code, and what it wrote."""

    code: int
    output: str
    errors: str


def cores() -> int:
    """How many processes run side by side."""
    return os.cpu_count() or 1


def run_atlas(lines: Sequence[Sequence[str]], colour: bool) -> Iterator[Outcome]:
    """Run command lines of `atlas` side by side, each in a process of its own; yield outcomes in the order given."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"FORCE_COLOR": "1"} if colour else {})

    def one(arguments: Sequence[str]) -> Outcome:
        command = [sys.executable, "-m", "moe_atlas", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(cores()) as threads:
        yield from threads.map(one, lines)


def run_tunes(jobs: Sequence[TuneJob], finished: Callable[[TuneJob], None]) -> Iterator[int]:
    """Run tunes in as many processes as there are cores; yield the steps done so far, now and then.

    Args:
        jobs: what to run.
        finished: told each job that is done, so that what is done stays done whatever comes.

    Raises:
        Whatever a job raised; the others are stopped first.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("L", 0)
    with ProcessPoolExecutor(min(len(jobs), cores()), context, _start_worker, (counter,)) as pool:
        job_of = {pool.submit(_run, job): job for job in jobs}
        pending = set(job_of)
        try:
            while pending:
                done, pending = wait(pending, GLANCE, FIRST_COMPLETED)
                for future in done:
                    future.result()
                    finished(job_of[future])
                yield counter.value
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_counter: Any = None


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    torch.set_num_threads(1)


def _run(job: TuneJob) -> None:
    job.run(_count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
