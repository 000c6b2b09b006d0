"""The routed experts of one layer as a stream: both checkpoints in lock-step, with the next experts prefetched.

Each pass over a layer reads every expert once. The first pass also compares the experts, for the weights ledger and for
expert identity. Only a few experts are in memory at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from moe_atlas.auditing.layer.device_transfer import transfer_to
from moe_atlas.auditing.layer.expert_findings import ExpertFindings, ExpertSummary, examine
from moe_atlas.auditing.layer.expert_source import ExpertSource, equal_weights, stack_sketches
from moe_atlas.auditing.layer.prefetch import DEPTH, prefetch
from moe_atlas.auditing.layer.requantise import holds, requantise, storage
from moe_atlas.auditing.layer.side import Weights
from moe_atlas.auditing.processes.group import Group
from moe_atlas.weights.comparison import combined_change
from moe_atlas.weights.identity import ExpertTraits
from moe_atlas.weights.ledger import WeightsLedger


@dataclass(frozen=True)
class Expert:
    """One expert of every checkpoint under audit, in the base's numbering and ready for products.

    Attributes:
        index: the base's index.
        weights: tensors by role, per checkpoint.
        identical: whether the tuned expert holds the base expert's values.
        by_index: the tuned expert that is stored under the base's index, if a relabelling moved the counterpart.
        requantised: the base expert after storage in the tuned checkpoint's format; None if that loses nothing.
    """

    index: int
    weights: tuple[Weights, ...]
    identical: bool
    by_index: Weights | None = None
    requantised: Weights | None = None


@dataclass(frozen=True)
class StoredExpert:
    """One expert of every checkpoint as stored, with the findings about it.

    Attributes:
        stored: tensors by role, as `ExpertSource.indices` lists them; an identical tuned expert is the base's own.
        identical: whether the tuned expert holds the base expert's values.
        requantised: see `Expert`.
        findings: empty after the first pass.
    """

    stored: Sequence[Weights]
    identical: bool
    requantised: Weights | None
    findings: ExpertFindings


class LayerExperts:
    """The experts of one layer of every checkpoint under audit, in the base's numbering.

    Args:
        source: the stored experts.
        ledger: the weights ledger that `record` fills.
        pool: threads that compare experts in the background.
        group: the processes that share the audit; each reads its share of the experts.
        depth: number of experts to prefetch.

    Attributes:
        source: the stored experts.
        changes: relative change of each expert's tensors taken together, None if undefined; empty before `record`.
        identical: whether every routed expert holds its counterpart's values; valid after `record`.
    """

    def __init__(
        self, source: ExpertSource, ledger: WeightsLedger, pool: Executor, group: Group, *, depth: int = DEPTH
    ) -> None:
        self.source, self._ledger, self._pool, self._group, self._depth = source, ledger, pool, group, depth
        self._summaries: dict[tuple[int, int], ExpertSummary] = {}
        self._findings: dict[int, ExpertFindings] = {}
        self._recorded = False
        self.changes: list[float | None] = []
        self._transfer = transfer_to(source.sides[0].replay.device)
        self.identical = len(source.sides) == 2

    def stream(self, *, more_passes: bool = False) -> Generator[Expert]:
        """Yield this process's experts in ascending order; the first experts are read from this call on.

        A caller that does not take all experts must close the generator, which stops all reads.

        Args:
            more_passes: whether the caller will stream these experts again.

        Raises:
            IntegrityError: E_CHANGED when a file changed after it was opened.
        """
        share = self._group.share(self.source.count)
        for side in self.source.sides:
            side.reader.page_locked, side.reader.again = self._transfer.page_locked, more_passes
        return self._experts(share, prefetch(self._start, share, self._depth))

    def record(self) -> None:
        """Enter the findings of the first pass in the ledger, in the order of the experts.

        Raises:
            InputRefused: E_NONFINITE when the base holds a NaN or an infinity.
        """
        if self._recorded:
            return
        findings = {e: found for part in self._group.gather(self._findings) for e, found in part.items()}
        for expert in range(self.source.count):
            self._summaries |= findings[expert].summaries
            for change in findings[expert].rows:
                self._ledger.enter(change)
                self.identical &= bool(change.identical)
            self.changes.append(combined_change(findings[expert].rows))
            for change in findings[expert].rows_as_stored:
                self._ledger.enter(change, as_stored=True)
        self._recorded = True

    def traits(self, number: int) -> ExpertTraits:
        """Return the traits of all experts of a checkpoint, in its own numbering; call `record` first."""
        summaries = [self._summaries[number, expert] for expert in range(self.source.count)]
        sketches_EN = stack_sketches([summary.sketch_N for summary in summaries])
        return ExpertTraits(
            sketches_EN,
            self.source.clones(number, sketches_EN),
            [expert for expert, summary in enumerate(summaries) if summary.initialised],
            [expert for expert, summary in enumerate(summaries) if summary.zeroed],
        )

    def _experts(
        self, share: range, reads: Generator[tuple[StoredExpert, Callable[[], Expert]]]
    ) -> Generator[Expert]:
        try:
            with closing(reads):
                for index, (read, arrive) in zip(share, reads, strict=True):
                    self._findings[index] = read.findings
                    expert = arrive()
                    yield expert
                    self._transfer.release_after(expert, partial(self._recycle, read))
                    del expert
            self._transfer.wait()
        finally:
            for side in self.source.sides:
                side.loader.submit(int).result()  # the loader runs in order, so all earlier reads are done
                side.reader.forget()

    def _start(self, expert: int) -> Future[tuple[StoredExpert, Callable[[], Expert]]]:
        """Start reading one expert of each checkpoint; running hashes need the reads in expert order."""
        loads: list[Future[Weights]] = []
        for number, index in self.source.indices(expert):
            if number and self.source.stored_once(expert, index):
                loads.append(loads[0])
            else:
                loads.append(self.source.sides[number].loader.submit(self.source.read, number, index))
        return self._pool.submit(self._examine_and_send, expert, loads)

    def _examine_and_send(
        self, expert: int, loads: Sequence[Future[Weights]]
    ) -> tuple[StoredExpert, Callable[[], Expert]]:
        """Examine one expert and start its transfer to the compute device; runs in the background."""
        read = self._examine(expert, [load.result() for load in loads])
        return read, self._transfer.start(partial(self._place, expert, read))

    def _examine(self, expert: int, stored: Sequence[Weights]) -> StoredExpert:
        """Compare one expert of each checkpoint; the first pass keeps findings."""
        sides = self.source.sides
        if len(sides) == 1:
            findings = ExpertFindings() if self._recorded else examine(self.source, expert, stored)
            return StoredExpert(stored, False, None, findings)
        if self._recorded:
            findings, identical = ExpertFindings(), equal_weights(stored[0], stored[1])
        else:
            findings = examine(self.source, expert, stored)
            identical = findings.identical
        requantised = self._requantised(expert, stored[0], identical)
        if identical:  # the base's tensors serve both checkpoints, whatever the tuned checkpoint's dtype
            if stored[1] is not stored[0]:
                sides[1].reader.recycle(stored[1].values())
            stored = [stored[0], stored[0], *stored[2:]]
        return StoredExpert(stored, identical, requantised, findings)

    def _requantised(self, expert: int, base: Weights, identical: bool) -> Weights | None:
        """Return a base expert after storage in the tuned checkpoint's format; None if that loses nothing."""
        own, other = (
            storage(side.checkpoint, self.source.refs(number, int(self.source.stored_E(number)[expert])))
            for number, side in enumerate(self.source.sides)
        )
        if all(holds(other[role], own[role]) for role in own):
            return None
        return base if identical else requantise(base, other)

    def _place(self, index: int, read: StoredExpert) -> Expert:
        """Move one expert to the compute device, in the dtypes of the products."""
        base, *others = self.source.sides
        weights = [base.multiplied(read.stored[0])]
        for side, stored in zip(others, read.stored[1:], strict=False):
            share = read.identical and side.replay.dtype == base.replay.dtype
            weights.append(weights[0] if share else side.multiplied(stored))
        by_index = others[0].multiplied(read.stored[2]) if len(read.stored) > 2 else None
        requantised = None if read.requantised is None else base.multiplied(read.requantised)
        return Expert(index, tuple(weights), read.identical, by_index, requantised)

    def _recycle(self, read: StoredExpert) -> None:
        """Return the memory of an expert to the readers, for the next experts."""
        sides = self.source.sides
        for weights, owner in zip(read.stored, (*sides, sides[-1]), strict=False):
            if weights is not read.stored[0] or owner is sides[0]:  # identical experts share one memory
                owner.reader.recycle(weights.values())
