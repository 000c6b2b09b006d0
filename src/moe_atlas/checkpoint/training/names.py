"""Which entries of a saved state are the model, and what its tensors are called there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moe_atlas.checkpoint.headers.refuse import refusal
from moe_atlas.checkpoint.training.metadata import Metadata, Path
from moe_atlas.checkpoint.training.pickles import NEXT_STEP
from moe_atlas.errors import InputRefused

MODEL = "model"
_OPTIMIZERS = ("optim", "optimizer", "optimizers")
_FOREIGN = (
    (
        re.compile(r"(tok_embeddings\.weight|layers\.\d+\.(attention|moe|feed_forward)\..*)"),
        "torchtitan",
        "convert it with torchtitan's scripts/checkpoint_conversion/convert_to_hf.py, or let the training write "
        "last_save_in_hf, and give what it writes",
    ),
    (
        re.compile(r"(.*\.)?(decoder\.layers\..*|embedding\.word_embeddings\.weight)"),
        "Megatron-Core",
        "export it with Megatron-Bridge: AutoBridge.from_hf_pretrained(…).export_ckpt(…), and give what it writes",
    ),
)


@dataclass(frozen=True)
class Model:
    """The model in a saved state.

    Attributes:
        names: the name of each of its tensors, by key.
        unread: how many other entries there are, by what they are.
    """

    names: Mapping[str, str]
    unread: Mapping[str, int]


def find_model(metadata: Metadata, label: str) -> Model:
    """Find the model in a saved state.

    A training saves the model's state by itself, or beside others in a nested dict: ``{"model": …, "optim": …}``. A
    group is what stands in one dict.

    Raises:
        InputRefused: ``E_METADATA`` if two groups may be the model, or none; ``E_FORMAT`` for names of a framework that
            are not those of the model's class.
    """
    keys = [*metadata.tensors, *metadata.others]
    paths = {key: metadata.paths[key] for key in keys if key in metadata.paths} or _guessed(keys)
    groups = {paths.get(key, (key,))[:-1] for key in metadata.tensors}
    model = _group_of_model(groups, label)
    names = {
        key: str(paths.get(key, (key,))[-1])
        for key in metadata.tensors
        if paths.get(key, (key,))[:-1] == model
    }
    _refuse_foreign(names.values(), label)
    _require_distinct(names, label)
    others = (_what(paths.get(key, (key,)), model) for key in keys if key not in names)
    return Model(names, dict(sorted(Counter(others).items())))


def _guessed(keys: Iterable[str]) -> dict[str, Path]:
    """Take the first part of a key for a dict where no path is known: an optimizer's, or a dict around the model.

    Names of models begin with ``model.`` as well. It is a dict if something stands in it that no model has there.
    """
    keys = list(keys)
    around = any(key.startswith(("model.model.", "model.lm_head.")) for key in keys)
    heads = (*_OPTIMIZERS, *([MODEL] if around else []))
    return {
        key: (head, rest) if head in heads and dot else (key,)
        for key, (head, dot, rest) in ((key, key.partition(".")) for key in keys)
    }


def _group_of_model(groups: set[Path], label: str) -> Path:
    named = sorted(group for group in groups if group and group[-1] == MODEL)
    if len(named) > 1:
        both = " and ".join(".".join(map(str, group)) for group in named[:2])
        raise _unclear(f"holds several models: {both}", label)
    if named:
        return named[0]
    if () not in groups:
        raise _unclear("holds no tensors by themselves, and none under 'model'", label)
    return ()


def _unclear(problem: str, label: str) -> InputRefused:
    step = "save the model's state alone, or as {'model': …} beside the others"
    return refusal("E_METADATA", label, problem, step)


def _refuse_foreign(names: Iterable[str], label: str) -> None:
    for name in names:
        for pattern, framework, step in _FOREIGN:
            if pattern.fullmatch(name):
                problem = f"holds the names of {framework}, not those of the model's class"
                raise refusal("E_FORMAT", label, problem, step, name=name)


def _require_distinct(names: Mapping[str, str], label: str) -> None:
    twice = next((name for name, count in Counter(names.values()).items() if count > 1), None)
    if twice is not None:
        raise refusal("E_METADATA", label, "two tensors have this name", NEXT_STEP, name=twice)


def _what(path: Path, model: Path) -> str:
    if path[:-1] == model and model:
        return "of the model, but no tensors"
    return str(path[0])
