"""The probe file, typed: the parts of `probes.yaml` (schema ``atlas/probes/v1``) and their meaning.

`describe()` of every class returns the part in the file's own spelling, defaults filled in. The lock registers this
spelling, and a receipt carries it.
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
"""Forms of a source's rows; a domain names its form if the rows hold the columns of several."""
SHORTER = ("refuse", "skip")
"""Treatments of a document that is shorter than its windows; the first is the default."""
SPECIAL_TOKENS = ("none", "bos")
"""Special token at the start of every window; the first is the default."""


@dataclass(frozen=True)
class WindowsConfig:
    """How documents are cut into windows.

    Attributes:
        tokens: length S of a window in tokens.
        per_document: disjoint windows taken from each document (default 1).
        seed: seed of the choice of documents and window starts (default 0).
    """

    tokens: int
    per_document: int
    seed: int

    def describe(self) -> dict[str, Any]:
        """Return the block in the file's spelling."""
        return {"tokens": self.tokens, "per_document": self.per_document, "seed": self.seed}


@dataclass(frozen=True)
class Evaluation:
    """The experts and tokens at which raw expert outputs are evaluated.

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
        """Return the block in the file's spelling."""
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
        """Return the rule in the file's spelling."""
        limit = {"at_least": self.at_least} if self.at_most is None else {"at_most": self.at_most}
        return {"metric": self.metric, **limit, "relative_to_base": self.relative_to_base}


@dataclass(frozen=True)
class Domain:
    """One stratum of documents.

    Attributes:
        name: unique name.
        role: ``base`` (capabilities that the tune must not damage), ``task`` (what the tune was to learn) or ``canary``
            (a few windows, each guarded by itself).
        source: path as written, relative to the probe file's folder, or a pattern of paths within it.
        rows: the form of row to read, of `ROWS`; None if a row holds the columns of one form only (default).
        documents: how many documents are drawn; None takes all of the source (default).
        shorter: the treatment of documents that are shorter than their windows, of `SHORTER`.
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
        """Return the domain in the file's spelling."""
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
        path: the probe file.
        name: the probe set's name.
        tokenizer: path of a ``tokenizer.json`` as written, ``bytes`` (UTF-8 bytes 0-255), or None when all
            sources are token ids.
        special_tokens: the special token at the start of every window, of `SPECIAL_TOKENS`.
        chat_template: path of a chat template as written; None takes the one beside the tokenizer (default).
        windows: how documents are cut into windows.
        evaluation: the experts and tokens at which expert outputs are evaluated.
        protected_layers: the layers that the rewrite predicate guards.
        domains: in the file's order.
        policy: budgets, limits and stage.
        central: the central policy file that governs this probe file, if any.
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
        """Return the file as JSON, defaults filled in, as the lock registers it.

        The result leaves out the optional choices `special_tokens` and `chat_template` if the file does not make them,
        so that the lock of such a file does not depend on whether these keys exist.
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
