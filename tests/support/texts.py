"""Texts, sources and conversations for tiny checkpoints, with a tokenizer of their 44 words and a chat template."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tokenizers

WORDS = [f"{a}{b}" for a in "bcdfgklm" for b in ("al", "el", "il", "ol", "ul")]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<s>", "<|user|>", "<|assistant|>"]


def text(dice: random.Random, words: int) -> str:
    """So many words, a token each."""
    return " ".join(dice.choice(WORDS) for _ in range(words))


def turns(dice: random.Random) -> list[dict[str, str]]:
    """A question and an answer."""
    return [{"role": "user", "content": text(dice, 4)}, {"role": "assistant", "content": text(dice, 6)}]


def rows(path: Path, made: list[dict[str, object]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


def tokenizer(checkpoint: Path) -> None:
    """A tokenizer of words beside a checkpoint, ids 0 to 43, with its settings and a chat template."""
    ids = {word: n for n, word in enumerate(["<unk>", *SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(SPECIAL)
    made.save(str(checkpoint / "tokenizer.json"))
    settings = {"bos_token": "<s>", "add_bos_token": True, "chat_template": TEMPLATE}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))


def sources(folder: Path, dice: random.Random) -> None:
    """A tree of source code, beside it a readme and a file that is no text."""
    (folder / "pkg").mkdir(parents=True)
    for number in range(40):
        (folder / f"pkg/m{number}.py").write_text(text(dice, 80))
    (folder / "README.md").write_text("words")
    (folder / "data.bin").write_bytes(b"\0\1")


def conversations(path: Path, dice: random.Random) -> None:
    """Conversations whose rows repeat the prompt in a column of its own, as published data sets do."""
    rows(path, [{"prompt": text(dice, 3), "messages": turns(dice)} for _ in range(40)])
