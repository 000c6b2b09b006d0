"""The probe file, typed: what `probes.yaml` (schema ``atlas/probes/v1``) may say and what each part means.

`describe()` of every class gives the part back in the file's own spelling, defaults filled in; that is what a
lock registers and a receipt carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.probes.settings.central import CentralPolicy
from moe_atlas.probes.settings.policy import Policy
from moe_atlas.probes.settings.protected_layers import LayerExpression

SCHEMA = "atlas/probes/v1"
ROLES = ("base", "task", "canary")
METRICS = ("nll", "token_accuracy", "exact_match")
EXPERT_SETS = ("active", "all")
ROWS = ("text", "tokens", "prompt", "messages", "conversations", "instruction")
"""What a row of a source may hold; named in a domain where rows hold more than one."""
SHORTER = ("refuse", "skip")
"""What is done about a document that is shorter than its windows; the first is the default."""
SPECIAL_TOKENS = ("none", "bos")
"""Which special token stands in front of every window; the first is the default."""


@dataclass(frozen=True)
class WindowsConfig:
    """How documents are cut.

    Attributes:
        tokens: length S of a window in tokens.
        per_document: disjoint windows taken from each document (default 1).
        seed: seed of the choice of documents and window starts (default 0).
    """

    tokens: int
    per_document: int
    seed: int

    def describe(self) -> dict[str, Any]:
        """The block in the file's spelling."""
        return {"tokens": self.tokens, "per_document": self.per_document, "seed": self.seed}


@dataclass(frozen=True)
class Evaluation:
    """Where raw expert outputs are needed, on how much they are evaluated.

    Attributes:
        experts: ``active`` (the routed sets of both checkpoints and the first competitor; default) or
            ``all``.
        token_stride: every n-th token of each window, from token 0 (default 1).
        quantile: the quantile over experts that content drift takes (default 0.9).
    """

    experts: str
    token_stride: int
    quantile: float

    def describe(self) -> dict[str, Any]:
        """The block in the file's spelling."""
        return {"experts": self.experts, "token_stride": self.token_stride, "quantile": self.quantile}


@dataclass(frozen=True)
class Success:
    """When a task domain counts as solved, teacher-forced.

    Attributes:
        metric: ``nll`` (nats per scored token), ``token_accuracy`` or ``exact_match`` (shares of tokens, of
            windows).
        at_most: upper limit, for ``nll``; None otherwise.
        at_least: lower limit, for the accuracies; None otherwise.
        relative_to_base: the limit is on the difference tuned - base instead of the tuned value (default
            false).
    """

    metric: str
    at_most: float | None
    at_least: float | None
    relative_to_base: bool

    def describe(self) -> dict[str, Any]:
        """The rule in the file's spelling."""
        limit = {"at_least": self.at_least} if self.at_most is None else {"at_most": self.at_most}
        return {"metric": self.metric, **limit, "relative_to_base": self.relative_to_base}


@dataclass(frozen=True)
class Domain:
    """One stratum of documents.

    Attributes:
        name: unique name.
        role: ``base`` (what must not be damaged), ``task`` (what was to be learnt) or ``canary`` (few, each
            guarded).
        source: path as written, relative to the probe file's folder, or a pattern of paths within it.
        rows: which columns of a row are read, of `ROWS`; None where a row holds one of them (default).
        documents: how many are drawn; None takes all that the source holds (default).
        shorter: what is done about documents that are shorter than their windows, of `SHORTER`.
        max_nll_increase: a canary window's own limit, nats per token; None for other roles.
        success: a task domain's rule; None for other roles.
        where: ``file:line`` for messages.
    """

    name: str
    role: str
    source: str
    rows: str | None
    documents: int | None
    shorter: str
    max_nll_increase: float | None
    success: Success | None
    where: str

    def describe(self) -> dict[str, Any]:
        """The domain in the file's spelling."""
        out: dict[str, Any] = {
            "name": self.name,
            "role": self.role,
            "source": self.source,
            "documents": self.documents,
        }
        if self.rows is not None:
            out["rows"] = self.rows
        if self.shorter != SHORTER[0]:
            out["shorter"] = self.shorter
        if self.max_nll_increase is not None:
            out["max_nll_increase"] = self.max_nll_increase
        if self.success is not None:
            out["success"] = self.success.describe()
        return out


@dataclass(frozen=True)
class ProbeConfig:
    """A whole probe file.

    Attributes:
        path: the file it was read from.
        name: the probe set's name.
        tokenizer: path of a ``tokenizer.json`` as written, ``bytes`` (UTF-8 bytes 0-255), or None when all
            sources are token ids.
        special_tokens: what stands in front of every window, of `SPECIAL_TOKENS`.
        chat_template: path of a chat template as written; None takes the one beside the tokenizer (default).
        windows: how documents are cut.
        evaluation: on what expert outputs are evaluated.
        protected_layers: the layers that the rewrite predicate guards.
        domains: in the file's order.
        policy: budgets, limits and stage.
        central: the central policy file that governs this one, if any.
    """

    path: Path
    name: str
    tokenizer: str | None
    special_tokens: str
    chat_template: str | None
    windows: WindowsConfig
    evaluation: Evaluation
    protected_layers: LayerExpression
    domains: tuple[Domain, ...]
    policy: Policy
    central: CentralPolicy | None = None

    def describe(self) -> dict[str, Any]:
        """The file as JSON, defaults filled in: what the lock registers.

        Choices that only some sources need are left out where they are not made, so that a file without them has the
        lock it had before they existed.
        """
        chosen: dict[str, Any] = {}
        if self.special_tokens != SPECIAL_TOKENS[0]:
            chosen["special_tokens"] = self.special_tokens
        if self.chat_template is not None:
            chosen["chat_template"] = self.chat_template
        return chosen | {
            "schema": SCHEMA,
            "name": self.name,
            "tokenizer": self.tokenizer,
            "windows": self.windows.describe(),
            "evaluation": self.evaluation.describe(),
            "protected_layers": self.protected_layers.describe(),
            "domains": [domain.describe() for domain in self.domains],
            "policy": self.policy.describe(),
        }
