"""The text of a drafted probe file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moe_atlas.drafting.choices import Choice
from moe_atlas.drafting.documents import Surveyed
from moe_atlas.text import shown

SHARE = 0.1  # tolerated share of damaged documents; 36 documents are the fewest that can pass with it
_FIRST = "# Written by atlas init. Each choice has its reason beside it; edit what you know better, then register it."
TARGET = -0.05  # nats; how far the task's loss must fall for the tune to count as learnt
_STAGE = """\
  # No budgets exist for this model yet: the atlas is measured, not judged, and a PASS says so. Damage, weights, expert
  # identity and values that are not finite decide. Audit healthy tunes of this base and let atlas calibrate set budgets
  # from them. Until three such tunes exist, atlas calibrate --from-base drafts provisional budgets.
  stage: damage-only"""
_DAMAGE = """\
  # nll: the mean rise of a base domain's loss, in nats a token, with which you would still promote; your own number.
  # A document that rises by more than document_nll counts as damaged; fewer than document_share of them may be.
  # kl is left out: twice nll stands in for it, and can only withhold a pass."""


@dataclass(frozen=True)
class Draft:
    """Everything that a drafted probe file says.

    Attributes:
        name: the probe set's name.
        tokenizer: as the probe file names it; None if all sources hold token ids.
        bos: whether every window begins with the tokenizer's `bos_token`.
        windows: tokens of a window.
        stride: stride of evaluated tokens.
        layers: protected layers.
        domains: the domains, each with the number of documents to register.
        margin: margin of the mean NLL increase of a base domain, nats per token.
        notes: lines about the pair.
    """

    name: str
    tokenizer: str | None
    bos: bool
    windows: Choice
    stride: Choice
    layers: Choice
    domains: Sequence[tuple[Surveyed, int]]
    margin: float
    notes: Sequence[str]

    def text(self) -> str:
        """Return the probe file."""
        notes = [f"# {shown(note, 400)}" for note in self.notes]
        return (
            "\n".join([_FIRST, *notes, self.start(), "", *self._head(), *self._domains(), *self._policy()])
            + "\n"
        )

    def start(self) -> str:
        """Return the first keys: schema, name and tokenizer."""
        lines = ["schema: atlas/probes/v1", f"name: {json.dumps(self.name)}"]
        lines += [] if self.tokenizer is None else [f"tokenizer: {json.dumps(self.tokenizer)}"]
        lines += ["special_tokens: bos  # tokenizer_config.json says add_bos_token"] if self.bos else []
        return "\n".join(lines)

    def _head(self) -> Iterator[str]:
        yield f"# {self.windows.reason}"
        yield f"windows: {{tokens: {self.windows.value}, per_document: 1, seed: 0}}"
        yield f"# stride: {self.stride.reason}"
        yield f"evaluation: {{experts: active, token_stride: {self.stride.value}, quantile: 0.9}}"
        yield f"# {self.layers.reason}"
        yield f"protected_layers: {self.layers.value}"
        yield ""

    def _domains(self) -> Iterator[str]:
        yield "domains:"
        for domain, count in self.domains:
            yield f"  # {domain.reads}; {count} of {domain.total} documents"
            yield f"  - {{{', '.join(_fields(domain, count))}}}"
        if self._has_task:
            yield f"  # The task counts as learnt where its loss falls by {-TARGET:g} nats a token; write your own."
        yield ""

    def _policy(self) -> Iterator[str]:
        yield "policy:"
        yield _STAGE
        if not self._has_task:
            yield "  task: none"
        yield _DAMAGE
        share = f"document_nll: {self.margin / SHARE:.3g}, document_share: {SHARE:g}"
        yield f"  damage: {{nll: {self.margin:g}, {share}}}"
        yield "  weights: {must_not_change: [], must_change: []}  # such as must_not_change: [router]"

    @property
    def _has_task(self) -> bool:
        return any(domain.given.role == "task" for domain, _ in self.domains)


def _fields(domain: Surveyed, count: int) -> Iterator[str]:
    yield f"name: {json.dumps(domain.given.name)}"
    yield f"role: {domain.given.role}"
    yield f"source: {json.dumps(domain.source)}"
    if domain.rows is not None:
        yield f"rows: {domain.rows}"
    yield f"documents: {count}"
    yield "shorter: skip"
    if domain.given.role == "task":
        yield f"success: {{metric: nll, at_most: {TARGET:g}, relative_to_base: true}}"
