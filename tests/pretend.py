"""A device that is none: tensors say that they lie on `pretend`, and their numbers are computed on the CPU.

It refuses what a GPU would refuse (tensors of two devices in one operation), computes the very bits of the CPU, and
counts what would make the processor wait for a GPU. It has no streams and no memory of its own. Once imported it stays
for the process, so that tests run it in one of their own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "pretend"
WAITS = (
    "item",
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "equal",
    "masked_select",
    "unique",
)
MOVES = ("copy_", "_to_copy", "to")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
CPU = torch.device("cpu")
waited: Counter[str] = Counter()


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
        waited["tolist"] += 1
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
    moved = (
        name in MOVES and len({isinstance(t, Pretend) for t in tensors} | ({there} if named else set())) > 1
    )
    if name in MOVES:
        waited["moved"] += moved
    else:
        require_one_device(name, args, tensors)
        waited[name] += name in WAITS
        waited["index by mask"] += name in INDEXED and any(
            t.dtype == torch.bool for t in args[1] if t is not None
        )
    own = {} if moved and named else {id(leaf.raw): leaf for leaf in tensors if isinstance(leaf, Pretend)}
    plain = [
        leaf.raw if isinstance(leaf, Pretend) else CPU if isinstance(leaf, torch.device) else leaf
        for leaf in leaves
    ]
    args, kwargs = pytree.tree_unflatten(plain, form)
    return pytree.tree_map_only(
        torch.Tensor,
        lambda t: own[id(t)] if id(t) in own else Pretend(t) if there else t,
        op(*args, **kwargs),
    )


def require_one_device(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse tensors of two devices, but for single numbers and for indices on the CPU, as CUDA does."""
    excused = {id(i) for i in args[1]} if name in INDEXED and isinstance(args[0], Pretend) else set()
    for tensor in tensors:
        if not isinstance(tensor, Pretend) and tensor.dim() and id(tensor) not in excused:
            raise RuntimeError(f"{name}: expected all tensors on one device, found one on {tensor.device}")


_setup_privateuseone_for_python_backend(DEVICE)
_factories = torch.library.Library("_", "IMPL")
_factories.fallback(run, "PrivateUse1")
