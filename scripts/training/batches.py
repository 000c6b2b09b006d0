"""Byte tokens: random training windows of the two domains, task items, and fixed held-out windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_atlas.look.standard_library import Document
from scripts.training.corpus import Corpus
from scripts.training.task import Item

SEPARATOR = 0  # between documents; also the padding, which the loss never sees
IGNORED = -100  # the target that cross entropy leaves out


@dataclass(frozen=True)
class Batch:
    """Inputs and next-token targets, both int64 [sequences, positions]; targets may be IGNORED."""

    inputs: Tensor
    targets: Tensor


def byte_tokens(text: str) -> Tensor:
    """The UTF-8 bytes of a text, int64."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


class Text:
    """Random windows from the training documents, the same number from each domain."""

    def __init__(self, corpus: Corpus, seed: int, domains: Sequence[str] = ("prose", "code")) -> None:
        self.streams = [self._join(corpus.train[domain]) for domain in domains]
        self.generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def _join(documents: list[Document]) -> Tensor:
        return byte_tokens(chr(SEPARATOR).join(document.text for document in documents))

    def draw(self, sequences: int, length: int) -> Batch:
        """A batch of `sequences` windows of `length` predicted positions."""
        share = sequences // len(self.streams)
        offsets = torch.arange(length + 1)
        rows = []
        for stream in self.streams:
            starts = torch.randint(0, len(stream) - length - 1, (share, 1), generator=self.generator)
            rows.append(stream[starts + offsets])
        tokens = torch.cat(rows)
        return Batch(tokens[:, :-1], tokens[:, 1:])


class Task:
    """Random task items, padded; only the completion is scored."""

    def __init__(self, items: Sequence[Item], seed: int) -> None:
        self.items = items
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, sequences: int) -> Batch:
        """A batch of items drawn with replacement."""
        chosen = torch.randint(0, len(self.items), (sequences,), generator=self.generator)
        return item_batch([self.items[index] for index in chosen.tolist()])


def item_batch(items: Sequence[Item]) -> Batch:
    """Pad items to one length and mask all but their completions."""
    rows = [(byte_tokens(item.prompt), byte_tokens(item.completion)) for item in items]
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens = torch.full((len(rows), length), SEPARATOR)
    targets = torch.full((len(rows), length), IGNORED)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        tokens[row, :end] = torch.cat([prompt, completion])
        targets[row, len(prompt) : end] = completion
    return Batch(tokens[:, :-1], targets[:, 1:])


def held_out_batch(documents: Sequence[Document], length: int) -> Batch:
    """The middle window of each document: a quick look during training, not the registered probe."""
    rows = []
    for document in documents:
        tokens = byte_tokens(document.text)
        start = (len(tokens) - length - 1) // 2
        rows.append(tokens[start : start + length + 1])
    stacked = torch.stack(rows)
    return Batch(stacked[:, :-1], stacked[:, 1:])
