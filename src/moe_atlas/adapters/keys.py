"""The names of an adapter's tensors: which module each belongs to, and what it is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moe_atlas.adapters.settings import MERGE
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.headers.refuse import refusal
from moe_atlas.errors import InputRefused

PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_NAME = re.compile(
    r"(?P<module>.+?)(?P<nested>(?:\.base_layer)*)\.(?P<part>" + "|".join(map(re.escape, _PARTS)) + ")"
)
_OWN = re.compile(r"(^|\.)lora_\w+")


@dataclass(frozen=True)
class Pair:
    """The two factors of one change, and what goes with them.

    Attributes:
        module: name of the module in the model's class.
        depth: how many other changes of the same module this one wraps.
        a: the factor A, [r, in], or [E·r, in] of a stack of experts.
        b: the factor B, [out, r], or [out, r·E].
        magnitude: the magnitude of each row, for DoRA.
        embedding: whether the module is an embedding: A is [r, V] and B is [D, r].
    """

    module: str
    depth: int
    a: StoredTensor
    b: StoredTensor
    magnitude: StoredTensor | None = None
    embedding: bool = False


def read_keys(tensors: Mapping[str, StoredTensor], label: str) -> tuple[list[Pair], dict[str, StoredTensor]]:
    """Sort an adapter's tensors into pairs of factors and whole tensors by the parameter that they replace.

    Raises:
        InputRefused: ``E_ADAPTER`` for a name without PEFT's prefix, a part that is not read, a factor without its
            counterpart, a factor that is no matrix, or two tensors for one parameter.
    """
    parts: dict[tuple[str, int, bool], dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise refuse(label, name, f"expected a name that begins with {PREFIX}, as PEFT saves it")
        own = name.removeprefix(PREFIX)
        found = _NAME.fullmatch(own)
        if found is not None:
            place = (found["module"], found["nested"].count("base_layer"), "embedding" in found["part"])
            _add(parts.setdefault(_home(parts, place), {}), _PARTS[found["part"]], tensor, label)
        elif _OWN.search(own):
            raise refuse(label, name, "this part of an adapter is not read")
        else:
            _add(whole, own.replace(".base_layer.", ".").replace(".modules_to_save.", "."), tensor, label)
    return [_pair(place, found, label) for place, found in parts.items()], whole


def _home(
    parts: Mapping[tuple[str, int, bool], object], place: tuple[str, int, bool]
) -> tuple[str, int, bool]:
    """Return the place to which a magnitude belongs: its name does not tell an embedding from another module."""
    other = (*place[:2], True)
    return other if other in parts else place


def _add(found: dict[str, StoredTensor], key: str, tensor: StoredTensor, label: str) -> None:
    if found.setdefault(key, tensor) is not tensor:
        raise refuse(label, tensor.name, f"stands beside {found[key].name}, which says the same")


def _pair(place: tuple[str, int, bool], parts: Mapping[str, StoredTensor], label: str) -> Pair:
    module, depth, embedding = place
    some = next(iter(parts.values()))
    for part in "ab":
        if part not in parts:
            raise refuse(label, some.name, f"the factor {part.upper()} of {module} is missing")
        if len(parts[part].shape) != 2 or 0 in parts[part].shape:
            raise refuse(label, parts[part].name, f"expected a matrix, found shape {list(parts[part].shape)}")
    return Pair(module, depth, parts["a"], parts["b"], parts.get("magnitude"), embedding)


def refuse(label: str, name: str, problem: str, step: str = MERGE) -> InputRefused:
    """Return the refusal of one tensor of an adapter."""
    return refusal("E_ADAPTER", label, problem, step, name=name)
