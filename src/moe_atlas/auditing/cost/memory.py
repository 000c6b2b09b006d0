"""How much memory an audit needs, from the specs alone, and how many tokens a limit lets pass a layer together.

Nothing here depends on the number of layers, on the number of experts or on a checkpoint's size: the states of all
tokens, a part of the vocabulary, one layer's shared tensors, a few experts of each checkpoint, and what is kept of the
tokens that are at the experts together. The more of them there are, the fewer times each expert is read.
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

RUNTIME = 350 << 20  # interpreter, torch and its libraries
DEFAULT = 1400 << 20  # what is used when no limit is stated and the minimum is below it
POSITION = 40  # bytes kept of a scored position of a checkpoint while the vocabulary passes the head
AT_HAND = 2  # experts of each checkpoint in memory beside those that wait: evaluated, being read


@dataclass(frozen=True)
class Needs:
    """Bytes an audit needs.

    Attributes:
        fixed: whatever passes a layer together, its experts aside.
        expert: an expert of every checkpoint.
        token: for every token that passes a layer's experts together with others.
        ends: while the vocabulary passes at embedding or head, when no token is at any expert.
        batch: tokens that must pass together at least.
    """

    fixed: int
    expert: int
    token: int
    ends: int
    batch: int

    def layer(self, depth: int) -> int:
        """Bytes of a layer that no token is at, so many experts being read ahead."""
        return self.fixed + (depth + AT_HAND) * self.expert

    def peak(self, tokens: int, depth: int) -> int:
        """Bytes with so many tokens at the experts together, and so many experts read ahead."""
        return max(self.layer(depth) + self.token * tokens, self.ends)

    @property
    def minimum(self) -> int:
        """Bytes with one batch at a time and nothing read ahead."""
        return self.peak(self.batch, 0)


def needs(
    specs: Sequence[ModelSpec],
    tokens: int,
    itemsize: int,
    stored: int,
    *,
    everyone: bool,
    decoded: Sequence[bool] = (),
) -> Needs:
    """What an audit needs.

    Args:
        specs: the checkpoints under audit.
        tokens: probe tokens, whose states live throughout.
        itemsize: bytes of the compute dtype.
        stored: bytes of the widest stored dtype.
        everyone: whether all experts are evaluated.
        decoded: which checkpoints are quantised, and hold their tensors in float32 before they are cast.
    """
    width, sides, batch = specs[0].width, len(specs), min(tokens, BATCH_TOKENS)
    element = (4 if any(decoded) else 0) + stored + (itemsize if itemsize != stored else 0)
    layer = max(_elements(layer.refs) for layer in specs[0].layers)
    expert = max(_elements(expert_refs(layer.moe, 0)) for layer in specs[0].layers if layer.moe)
    moes = [layer.moe for layer in specs[0].layers if layer.moe]
    slots = max(m.router.experts + 2 if everyone else m.router.top_k + 2 for m in moes)
    experts = max(m.router.experts for m in moes)
    streams = specs[0].streams.count if specs[0].streams else 0
    states = RUNTIME + sides * tokens * max(streams, 1) * width * itemsize
    # One batch in front of its router: canonical state and router input in float32; scores and probabilities.
    work = sides * batch * width * 8 + PROBABILITIES * 16 + CHUNK * 32
    # The part of the vocabulary at hand and the next one; what stands beside the head.
    vocab = max(spec.vocab for spec in specs)
    end = 2 * min(PART, vocab) * width
    end += _elements([ref for ref in specs[0].final_refs if ref.role != "head"])
    # One checkpoint: streams, residual, gate coordinate, expert outputs; routing tables and places.
    one = width * (streams + 2 + slots) * itemsize + experts * 20 + slots * 24
    # The pair: gate coordinate at the anchor, ΔV in float64; routing tables and what is known of every slot.
    pair = width * (itemsize + 8) + experts * 16 + 2 * slots * 56
    return Needs(
        fixed=states + sides * element * layer + work,
        expert=sides * element * expert,
        token=sides * one + (pair if sides == 2 else 0),
        ends=states
        + sides * (element * end + tokens * POSITION)
        + PART * POSITIONS * 4 * (2 * sides + 3)
        + 3 * vocab * 8,  # squares of every row
        batch=batch,
    )


def minimum(
    specs: Sequence[ModelSpec], tokens: int, itemsize: int, *, everyone: bool, decoded: Sequence[bool] = ()
) -> int:
    """Bytes an audit needs at least, of checkpoints stored in the compute dtype."""
    return needs(specs, tokens, itemsize, itemsize, everyone=everyone, decoded=decoded).minimum


def held_tokens(limit: int | None, room: Needs) -> int:
    """How many tokens may pass a layer's experts together.

    Raises:
        ResourceExhausted: E_MEMORY when the limit is below the minimum.
    """
    if limit is not None and limit < room.minimum:
        raise ResourceExhausted(
            "E_MEMORY",
            f"--memory {_mib(limit)}",
            f"this audit needs at least {_mib(room.minimum)}",
            f"give --memory {_mib(room.minimum)} or more, or register fewer or shorter windows",
        )
    bound = _bound(limit, room)
    return max(room.batch, (bound - room.layer(read_ahead(limit, room))) // room.token)


def read_ahead(limit: int | None, room: Needs) -> int:
    """How many experts are read ahead: as many as leave room for one batch, `DEPTH` at most."""
    fitting = (depth for depth in range(DEPTH, 0, -1) if room.peak(room.batch, depth) <= _bound(limit, room))
    return next(fitting, 0)


def _bound(limit: int | None, room: Needs) -> int:
    return max(DEFAULT, room.minimum) if limit is None else limit


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what lies between the small survivors of every layer.

    Without it the peak grows with the depth of the model, though nothing is held.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _elements(refs: Sequence[TensorRef]) -> int:
    return sum(math.prod(ref.shape) for ref in refs)


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"
