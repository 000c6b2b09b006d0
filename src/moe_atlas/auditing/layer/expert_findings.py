"""Findings about an expert that the audit keeps after it frees the expert's weights.

Legend: N sketch elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from moe_atlas.auditing.layer.expert_source import ExpertSource
from moe_atlas.auditing.layer.requantise import compare_tensors
from moe_atlas.auditing.layer.side import Weights
from moe_atlas.weights.comparison import TensorChange, TensorComparison
from moe_atlas.weights.identity import looks_initialised, sketch

Comparisons = dict[str, TensorComparison]  # by role


@dataclass(frozen=True)
class ExpertSummary:
    """Properties of one expert of one checkpoint.

    Attributes:
        sketch_N: sample of its elements, float32.
        initialised: whether it looks untrained.
        zeroed: whether one of its matrices is zero throughout.
    """

    sketch_N: Tensor
    initialised: bool
    zeroed: bool


@dataclass
class ExpertFindings:
    """Findings about one base expert and its counterpart.

    Attributes:
        summaries: by (checkpoint number, index in that checkpoint).
        rows: rows of the weights ledger.
        rows_as_stored: rows that compare the tensors stored under the base's index, if a relabelling moved the
            counterpart.
    """

    summaries: dict[tuple[int, int], ExpertSummary] = field(default_factory=dict)
    rows: list[TensorChange] = field(default_factory=list)
    rows_as_stored: list[TensorChange] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether the counterpart holds the same values."""
        return all(row.identical for row in self.rows)


def examine(source: ExpertSource, expert: int, stored: Sequence[Weights]) -> ExpertFindings:
    """Compare an expert of every checkpoint, reading every byte once.

    Args:
        source: the stored experts of the layer.
        expert: the base's index.
        stored: tensors as `ExpertSource.indices` lists them.
    """
    indices = source.indices(expert)
    comparisons = _compare(source, stored[:2], indices[:2])
    summary = _summarise(stored[0], comparisons, 0)
    findings = ExpertFindings({indices[0]: summary}, _changes(source, expert, comparisons))
    if len(stored) > 1:
        same = findings.identical
        findings.summaries[indices[1]] = summary if same else _summarise(stored[1], comparisons, 1)
    if len(stored) > 2:
        comparisons = _compare(source, [stored[0], stored[2]], [indices[0], indices[2]])
        findings.rows_as_stored = _changes(source, expert, comparisons)
    return findings


def _compare(
    source: ExpertSource, stored: Sequence[Weights], indices: Sequence[tuple[int, int]]
) -> Comparisons:
    """Compare each tensor of an expert with its counterpart, if there is one."""
    refs = [source.refs(number, index) for number, index in indices]
    return {
        pair[0].role: compare_tensors(source.sides, pair, [weights[pair[0].role] for weights in stored])
        for pair in zip(*refs, strict=True)
    }


def _changes(source: ExpertSource, expert: int, comparisons: Comparisons) -> list[TensorChange]:
    return [
        comparisons[ref.role].change(ref.name, ref.kind, source.layer, expert)
        for ref in source.refs(0, expert)
    ]


def _summarise(weights: Weights, comparisons: Comparisons, number: int) -> ExpertSummary:
    """Summarise the expert of checkpoint `number`."""
    matrices = [role for role, tensor in weights.items() if tensor.dim() == 2]
    squares = [comparisons[role].row_squares(number) for role in matrices]
    return ExpertSummary(
        sketch(list(weights.values())),
        bool(weights) and looks_initialised([weights[role] for role in matrices], squares),
        any(comparisons[role].zeroed(number) for role in matrices),
    )
