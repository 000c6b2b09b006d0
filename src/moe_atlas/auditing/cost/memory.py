"""Memory that an audit needs, from the specs alone, and the number of tokens per pass under a memory limit.

The need does not depend on the number of layers or experts or on the size of a checkpoint. It consists of the states of
all tokens, one part of the vocabulary, the shared tensors of one layer, a few experts of each checkpoint, and the
values of the tokens in one pass. More tokens per pass mean fewer reads of each expert.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from moe_atlas.auditing.layer.batches import BATCH_TOKENS
from moe_atlas.auditing.layer.prefetch import DEPTH
from moe_atlas.errors import ResourceExhausted
from moe_atlas.geometry.fields.chunking import CHUNK
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import ModelSpec, TensorRef
from moe_atlas.replay.loss import PART, POSITIONS
from moe_atlas.replay.mixers.attention import PROBABILITIES

RUNTIME = 350 << 20  # bytes of the interpreter, torch and its libraries
DEFAULT = 1400 << 20  # limit without --memory, unless the minimum is higher
POSITION = 40  # bytes of the output sums per scored position and checkpoint
IN_USE = 2  # experts per checkpoint beside the prefetched ones: one evaluated, one being read


@dataclass(frozen=True)
class Needs:
    """Bytes that an audit needs.

    Attributes:
        fixed: bytes in a layer that do not depend on the tokens per pass, experts aside.
        expert: bytes of one expert of every checkpoint.
        token: bytes per token in a pass over a layer's experts.
        vocabulary: bytes during the pass over embedding or head, when no expert is in memory.
        batch: least number of tokens in a pass.
    """

    fixed: int
    expert: int
    token: int
    vocabulary: int
    batch: int

    def layer(self, depth: int) -> int:
        """Return the bytes in a layer with `depth` prefetched experts, without those of tokens."""
        return self.fixed + (depth + IN_USE) * self.expert

    def peak(self, tokens: int, depth: int) -> int:
        """Return the peak bytes with `tokens` tokens per pass and `depth` prefetched experts."""
        return max(self.layer(depth) + self.token * tokens, self.vocabulary)

    @property
    def minimum(self) -> int:
        """The bytes with one batch per pass and no prefetched expert."""
        return self.peak(self.batch, 0)


def needs(
    specs: Sequence[ModelSpec],
    tokens: int,
    itemsize: int,
    stored: int,
    *,
    everyone: bool,
    decoded: Sequence[bool] = (),
    kept: int = 0,
    held: int = 0,
) -> Needs:
    """Return the bytes that an audit needs.

    Args:
        specs: specs of the checkpoints under audit.
        tokens: number of probe tokens, whose states stay in memory throughout.
        itemsize: bytes per element of the compute dtype.
        stored: bytes per element of the widest stored dtype.
        everyone: whether the audit evaluates all experts.
        decoded: for each checkpoint, whether its tensors are computed in float32 before the cast: decoded or adapted.
        kept: bytes of evidence that the audit keeps until its end.
        held: bytes of the factors of an adapter that stay in memory.
    """
    width, sides, batch = specs[0].width, len(specs), min(tokens, BATCH_TOKENS)
    element = (4 if any(decoded) else 0) + stored + (itemsize if itemsize != stored else 0)
    layer = max(_elements(layer.refs) for layer in specs[0].layers)
    expert = max(_elements(expert_refs(layer.moe, 0)) for layer in specs[0].layers if layer.moe)
    moes = [layer.moe for layer in specs[0].layers if layer.moe]
    slots = max(m.router.experts + 2 if everyone else m.router.top_k + 2 for m in moes)
    experts = max(m.router.experts for m in moes)
    streams = specs[0].streams.count if specs[0].streams else 0
    states = RUNTIME + sides * tokens * max(streams, 1) * width * itemsize + kept + held
    # One batch in front of the router: canonical state and router input in float32; scores and probabilities.
    work = sides * batch * width * 8 + PROBABILITIES * 16 + CHUNK * 32
    # The current and the next part of the vocabulary, and the final norm.
    vocab = max(spec.vocab for spec in specs)
    part = 2 * min(PART, vocab) * width
    part += _elements([ref for ref in specs[0].final_refs if ref.role != "head"])
    # One checkpoint: streams, residual, gate coordinate, expert outputs; routing tables and row numbers.
    single = width * (streams + 2 + slots) * itemsize + experts * 20 + slots * 24
    # The pair: gate coordinate at the anchor, ΔV in float64; routing tables and values per slot.
    pair = width * (itemsize + 8) + experts * 16 + 2 * slots * 56
    return Needs(
        fixed=states + sides * element * layer + work,
        expert=sides * element * expert,
        token=sides * single + (pair if sides == 2 else 0),
        vocabulary=states
        + sides * (element * part + tokens * POSITION)
        + PART * POSITIONS * 4 * (2 * sides + 3)
        + 3 * vocab * 8,  # squares of every row
        batch=batch,
    )


def minimum(
    specs: Sequence[ModelSpec], tokens: int, itemsize: int, *, everyone: bool, decoded: Sequence[bool] = ()
) -> int:
    """Return the least bytes that an audit needs for checkpoints stored in the compute dtype."""
    return needs(specs, tokens, itemsize, itemsize, everyone=everyone, decoded=decoded).minimum


def held_tokens(limit: int | None, required: Needs) -> int:
    """Return the number of tokens that one pass over a layer's experts may hold under a limit in bytes.

    Raises:
        ResourceExhausted: E_MEMORY if the limit is below the minimum.
    """
    if limit is not None and limit < required.minimum:
        raise ResourceExhausted(
            "E_MEMORY",
            f"--memory {_mib(limit)}",
            f"this audit needs at least {_mib(required.minimum)}",
            f"give --memory {_mib(required.minimum)} or more, or register fewer or shorter windows",
        )
    bound = _bound(limit, required)
    return max(required.batch, (bound - required.layer(read_ahead(limit, required))) // required.token)


def read_ahead(limit: int | None, required: Needs) -> int:
    """Return the number of experts to prefetch: the most that leave memory for one batch, and at most `DEPTH`."""
    bound = _bound(limit, required)
    fitting = (depth for depth in range(DEPTH, 0, -1) if required.peak(required.batch, depth) <= bound)
    return next(fitting, 0)


def _bound(limit: int | None, required: Needs) -> int:
    return max(DEFAULT, required.minimum) if limit is None else limit


def trim_heap() -> None:
    """Return freed memory to the system, because glibc keeps free memory between the small objects of each layer.

    Without this call, the peak grows with the depth of the model although the audit holds no more memory.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _elements(refs: Sequence[TensorRef]) -> int:
    return sum(math.prod(ref.shape) for ref in refs)


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"
