"""A device that is none: tensors say that they lie on `pretend`, and their numbers are computed on the CPU.

It refuses what a GPU would refuse (tensors of two devices in one operation), computes the very bits of the CPU, and
counts what would make the processor wait for a GPU. What is begun on a stream of its own is done as late as it may be,
when something waits for it: until then its results are NaN, and whoever changes its sources changes them. Once imported
it stays for the process, so that tests run it in one of their own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, local
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

DEVICE = "pretend"
WAITS = (
    "item", "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "equal", "masked_select", "unique",
)  # fmt: skip
MOVES = ("copy_", "_to_copy", "to")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
CPU = torch.device("cpu")
counts: Counter[str] = Counter()


class Event:
    """A moment on a stream, after so much was begun there."""

    def __init__(self, stream: Stream, count: int) -> None:
        self._stream, self._count = stream, count

    def synchronize(self) -> None:
        """Do what was begun before, whoever began it."""
        self._stream.do(self._count)


class Stream:
    """Work that is begun in order, by any thread; the stream of products does everything at once."""

    def __init__(self, device: Any = None) -> None:
        self._lock, self._begun, self._count = Lock(), deque[Callable[[], Any]](), 0

    def begin(self, work: Callable[[], Any]) -> None:
        """Put off some work."""
        with self._lock:
            self._begun.append(work)
            self._count += 1

    def do(self, count: int) -> None:
        """Do the first `count` things that were ever begun."""
        with self._lock:
            while self._count - len(self._begun) < count:
                self._begun.popleft()()

    def record_event(self) -> Event:
        """This moment."""
        return Event(self, self._count)

    def wait_event(self, event: Event) -> None:
        """Let what comes wait for it."""
        event.synchronize()


class Streams(backend_registration._DummyBackendModule):
    """What `torch.cuda` is to CUDA."""

    Stream, Event = Stream, Event

    def current_stream(self, device: Any = None) -> Stream:
        """The stream that this thread's work is begun on."""
        return getattr(_current, "stream", None) or Stream()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Begin this thread's work there."""
        _current.stream = stream
        try:
            yield
        finally:
            del _current.stream


class Pretend(torch.Tensor):
    """A tensor that says it lies on the device; `raw` holds its numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Pretend:
        with torch.inference_mode(mode=False):  # such a tensor could be no view of one made outside
            made = torch.Tensor._make_wrapper_subclass(
                cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device=DEVICE
            )
        made.raw = raw
        return made

    def tolist(self) -> Any:
        """The numbers themselves, which torch refuses to give of a subclass."""
        counts["tolist"] += 1
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, *args, **kwargs or {})


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation, as the device would take it."""
    name = op._schema.name.removeprefix("aten::")
    leaves, form = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    named = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    there = named[0].type == DEVICE if named else not tensors or isinstance(tensors[0], Pretend)
    moved = False
    if name in MOVES:
        moved = len({isinstance(t, Pretend) for t in tensors} | ({there} if named else set())) > 1
        counts["moved"] += moved and not (
            kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        )
    else:
        require_one_device(name, args, tensors)
        counts[name] += name in WAITS
        counts["index by mask"] += name in INDEXED and any(
            t.dtype == torch.bool for t in args[1] if t is not None
        )
    own = {} if moved and named else {id(leaf.raw): leaf for leaf in tensors if isinstance(leaf, Pretend)}
    plain = [
        leaf.raw if isinstance(leaf, Pretend) else CPU if isinstance(leaf, torch.device) else leaf
        for leaf in leaves
    ]
    args, kwargs = pytree.tree_unflatten(plain, form)
    stream = getattr(_current, "stream", None)
    result = op(*args, **kwargs) if stream is None or name not in MOVES else begun(stream, op, args, kwargs)
    return pytree.tree_map_only(
        torch.Tensor, lambda t: own[id(t)] if id(t) in own else Pretend(t) if there else t, result
    )


def begun(stream: Stream, op: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """What a move on a stream will have made, once something waits for it."""
    in_place = op._schema.name == "aten::copy_"
    result = args[0] if in_place else op(*args, **kwargs)
    if in_place or result is not args[0]:
        result.fill_(torch.nan if result.is_floating_point() else 0)
        stream.begin(lambda: result.copy_(args[1] if in_place else op(*args, **kwargs)))
    return result


def require_one_device(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse tensors of two devices, but for single numbers and for indices on the CPU, as CUDA does."""
    excused = {id(i) for i in args[1]} if name in INDEXED and isinstance(args[0], Pretend) else set()
    for tensor in tensors:
        if not isinstance(tensor, Pretend) and tensor.dim() and id(tensor) not in excused:
            raise RuntimeError(f"{name}: expected all tensors on one device, found one on {tensor.device}")


_current = local()
backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=Streams())
_factories = torch.library.Library("_", "IMPL")
_factories.fallback(run, "PrivateUse1")
