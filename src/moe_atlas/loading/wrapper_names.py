"""Explain missing and unread tensors by the way the checkpoint was saved: in a wrapper, or with an unmerged adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from moe_atlas.checkpoint.headers.refuse import shown

COMPARED = 2048  # most names to compare with a missing name


class Mark(NamedTuple):
    """A part of a tensor's name that a training library adds.

    Attributes:
        pattern: regular expression of the part.
        what: the library and its name for the part.
        step: how to save without the part.
    """

    pattern: str
    what: str
    step: str


_MERGED = "save the merged model: model.merge_and_unload().save_pretrained(OUT)"
MARKS = (
    Mark(
        r"(^|\.)(lora_\w+|base_layer|modules_to_save)(\.|$)",
        "PEFT's names of an adapter that was not merged",
        _MERGED,
    ),
    Mark(r"^base_model\.model\.", "PEFT's wrapper (base_model.model)", _MERGED),
    Mark(
        r"(^|\.)_fsdp_wrapped_module\.",
        "FSDP's wrapper (_fsdp_wrapped_module)",
        "save the full state dict: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
        "torch.distributed.checkpoint.state_dict, which drops it",
    ),
    Mark(
        r"(^|\.)_orig_mod\.",
        "torch.compile's wrapper (_orig_mod)",
        "save the model inside: model._orig_mod.save_pretrained(OUT)",
    ),
    Mark(
        r"(^|\.)_checkpoint_wrapped_module\.",
        "activation checkpointing's wrapper (_checkpoint_wrapped_module)",
        "save the model inside it, or the state dict that get_model_state_dict of "
        "torch.distributed.checkpoint.state_dict gives",
    ),
    Mark(
        r"^module\.",
        "DistributedDataParallel's or DeepSpeed's wrapper (module)",
        "save the model inside: model.module.save_pretrained(OUT)",
    ),
    Mark(
        r"(^|\.)((language_|text_)?model\.)\2",
        "a prefix that stands twice, as a save leaves it that renames what was renamed before",
        "load the trained model and save it again with a version of transformers that keeps its names",
    ),
)


def account(name: str, missing: Collection[str], unread: Sequence[str], used: int) -> tuple[str, str]:
    """Return the counts of missing and unread tensors, with the source of unread names, and the next step.

    Args:
        name: the first tensor of the message.
        missing: names of needed tensors that are not stored.
        unread: names of stored tensors that nothing reads.
        used: number of stored tensors that the spec reads.
    """
    counts = []
    if missing:
        counts.append(f"{len(missing)} of {len(missing) + used} needed tensors are missing")
    if unread:
        counts.append(f"{len(unread)} stored {'one is' if len(unread) == 1 else 'ones are'} read by nothing")
    marked = [
        (mark, found) for mark in MARKS if (found := [one for one in unread if re.search(mark.pattern, one)])
    ]
    said = [f"{len(found)} {'has' if len(found) == 1 else 'have'} {mark.what}" for mark, found in marked[:1]]
    closest = get_close_matches(name, unread[:COMPARED], n=1, cutoff=0.4) if missing else []
    said += [f"the closest stored name is {shown(one)}" for one in closest]
    return "".join(f"; {one}" for one in (" and ".join(counts), *said)), _step(marked, missing)


def _step(marked: Sequence[tuple[Mark, object]], missing: Collection[str]) -> str:
    if marked:
        return marked[0][0].step
    if missing:
        return (
            "leave the checkpoint as it is; compare it with what it was saved or downloaded from: tensors were lost, "
            "renamed or left behind"
        )
    return "leave the checkpoint as it is; the family's file in moe_atlas/families would have to use it"
