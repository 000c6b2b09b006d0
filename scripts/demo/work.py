"""Jobs that run side by side, one thread each: tunes, and the audits of the reference tunes.

One thread a job keeps the cores busy at this size, and makes a tune the same on two cores as on sixty-four.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_atlas.api import AuditOptions, audit
from scripts.demo.batches import Task, Text
from scripts.demo.checkpoint import load, save
from scripts.demo.corpus import load_corpus
from scripts.demo.task import load_items
from scripts.demo.train import TuneRecipe, tune

GLANCE = 0.3  # seconds between two looks at the jobs' counters


@dataclass(frozen=True)
class TuneJob:
    """Tune the base into `target`; counts optimiser steps."""

    base: Path
    target: Path
    recipe: TuneRecipe

    def run(self, step: Callable[[], None]) -> None:
        """Train and save."""
        corpus = load_corpus()
        model = load(self.base)
        text, task = Text(corpus, self.recipe.seed), Task(load_items(corpus)[0], self.recipe.seed)
        tune(model, text, task, self.recipe, lambda *_: step())
        save(model, self.target)


@dataclass(frozen=True)
class AuditJob:
    """Audit a reference tune; counts replayed layers."""

    base: Path
    tuned: Path
    probes: Path
    receipt: Path

    @property
    def target(self) -> Path:
        """What the job writes."""
        return self.receipt

    def run(self, step: Callable[[], None]) -> None:
        """Measure and write the receipt."""
        options = AuditOptions(threads=1, progress=_Steps(step))
        audit(self.base, self.tuned, self.probes, receipt=self.receipt, force=True, options=options)


Job = TuneJob | AuditJob


class _Steps:
    """An audit's watcher that counts layers, nearly all of the work, and no other phase."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._phases = 0

    def phase(self, name: str, steps: int) -> None:
        """The first phase replays the layers."""
        self._phases += 1

    def step(self, detail: str, bytes_read: int) -> None:
        """Count."""
        if self._phases == 1:
            self._step()


def run_jobs(jobs: Sequence[Job], finished: Callable[[Job], None]) -> Iterator[int]:
    """Run jobs in as many processes as there are cores; yield the steps done so far, now and then.

    Args:
        jobs: what to run.
        finished: told each job that is done, so that what is done stays done whatever comes.

    Raises:
        Whatever a job raised; the others are stopped first.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("L", 0)
    workers = min(len(jobs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, _start_worker, (counter,)) as pool:
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


def _run(job: Job) -> None:
    job.run(_count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
