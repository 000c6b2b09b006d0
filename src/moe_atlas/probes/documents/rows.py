"""Read the rows of a source, in any of their forms, before tokenisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents.tokenizer import Tokens
from moe_atlas.text import quoted

MAX_TOKEN = (1 << 31) - 1
"""Largest token id: window data keep token ids as int32."""
MAX_MESSAGES = 10_000

FORMS = {
    "text": ("text",),
    "tokens": ("tokens",),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "output"),
}
"""Columns of each form of row, by its name in a probe file. `instruction` may have `input` as well."""
COLUMNS = ("id", *(column for form in FORMS.values() for column in form), "input", "tools")

# The prompt that Stanford Alpaca trains on, word for word: github.com/tatsu-lab/stanford_alpaca, train.py.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}{given}\n\n### Response:"
)
_PAIRED = ", paired with an input that provides further context"

SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Role for each value of `from` in ShareGPT's spelling."""


@dataclass(frozen=True)
class Conversation:
    """Messages to render.

    Attributes:
        messages: each with `role` and all other keys of the row's message, as plain JSON without nulls.
        tools: the tools that a template is given, if any.
        first: index of the first message that may be scored; the messages before it are a prompt.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    first: int = 0


@dataclass(frozen=True)
class Record:
    """One row of a source, before tokenisation.

    Attributes:
        document_id: id of the row's document; rows with the same id are parts of one document.
        where: file and line for messages.
        content: text, token ids or a conversation; of a row with a prompt, the completion.
        prompt: text or token ids of the prompt, None for a plain row.
    """

    document_id: str
    where: str
    content: str | Tokens | Conversation = field(compare=False)
    prompt: str | Tokens | None = field(default=None, compare=False)


def refuse(where: str, problem: str, next_step: str = "") -> NoReturn:
    """Raise E_PROBE_SOURCE."""
    raise InputRefused("E_PROBE_SOURCE", where, problem, next_step)


def read_row(row: dict[str, Any], where: str, default_id: str, form: str | None = None) -> Record:
    """Read a row.

    Args:
        row: the row's columns; columns of no form are ignored.
        where: file and line for messages.
        default_id: the document id of a row without `id`.
        form: the form to read, of `FORMS`; None if the row must hold exactly one form.

    Raises:
        InputRefused: E_PROBE_SOURCE.
    """
    document_id = _document_id(row.get("id", default_id), where)
    form = form or _form(row, where)
    if missing := [key for key in FORMS[form] if key not in row]:
        refuse(where, f"{missing[0]} is missing")
    if form == "prompt":
        return _completion(row, document_id, where)
    if form == "instruction":
        return _instruction(row, document_id, where)
    value = row[form]
    if form in ("messages", "conversations"):
        return Record(document_id, where, _conversation(value, form, row, where))
    return Record(document_id, where, _content(value, form, where, str if form == "text" else list))


def _form(row: dict[str, Any], where: str) -> str:
    """Return the only form that a row holds."""
    marks = {name: keys if name != "instruction" else ("instruction",) for name, keys in FORMS.items()}
    forms = [name for name, keys in marks.items() if any(key in row for key in keys)]
    if len(forms) == 1:
        return forms[0]
    expected = f"a row has {', or '.join(' and '.join(keys) for keys in FORMS.values())}"
    if not forms:
        refuse(where, f"{expected}; found only {quoted(', '.join(row))}", "rename the column that is meant")
    found = " and ".join("+".join(FORMS[name]) for name in forms)
    refuse(
        where, f"{expected}; found {found}", f"say in the domain which is meant, such as rows: {forms[-1]}"
    )


def _document_id(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or len(value) > 512:
        refuse(where, "id must be an integer or a text of 1 to 512 characters")
    return encodable(value, "id", where)


def _completion(row: dict[str, Any], document_id: str, where: str) -> Record:
    """Read prompt and completion, as text, token ids or messages."""
    prompt, completion = row["prompt"], row["completion"]
    if _are_messages(prompt) and _are_messages(completion):
        asked = _messages(prompt, "prompt", where)
        answered = _messages(completion, "completion", where)
        return Record(document_id, where, _scored((*asked, *answered), len(asked), row, where))
    ids = [_content(row[key], key, where, None) for key in ("prompt", "completion")]
    return Record(document_id, where, ids[1], ids[0])


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _instruction(row: dict[str, Any], document_id: str, where: str) -> Record:
    """Render Alpaca's columns as Alpaca does; the prompt is everything up to ``### Response:``."""
    texts = {key: row.get(key) for key in ("instruction", "input", "output")}
    if texts["input"] is None:
        texts["input"] = ""
    instruction, given, output = (str(_content(value, key, where, str)) for key, value in texts.items())
    prompt = _ALPACA.format(
        paired=_PAIRED if given else "",
        instruction=instruction,
        given=f"\n\n### Input:\n{given}" if given else "",
    )
    return Record(document_id, where, output, prompt)


def _conversation(value: object, key: str, row: dict[str, Any], where: str) -> Conversation:
    return _scored(_messages(value, key, where), 0, row, where)


def _scored(
    messages: tuple[dict[str, Any], ...], first: int, row: dict[str, Any], where: str
) -> Conversation:
    """Return the conversation; refuse it if it has no assistant turn to score."""
    if not any(message["role"] == "assistant" for message in messages[first:]):
        refuse(where, "has no assistant turn, so nothing is scored", "take it out of the source")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        refuse(where, f"tools must be a list of objects, found {type(tools).__name__}")
    return Conversation(messages, tuple(tools), first)


def _messages(value: object, key: str, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        found = f"{len(value)} of them" if isinstance(value, list) else type(value).__name__
        refuse(where, f"{key} must be a list of 1 to {MAX_MESSAGES} messages, found {found}")
    return tuple(_message(item, f"{key}[{n}]", where) for n, item in enumerate(value))


def _message(value: object, name: str, where: str) -> dict[str, Any]:
    """Return a message in the spelling that templates read, without null keys, as transformers does."""
    message = (
        {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else {}
    )
    if "role" in message and "from" not in message:
        if not isinstance(message["role"], str):
            refuse(where, f"{name}.role must be text, found {type(message['role']).__name__}")
        return message
    if "role" in message or not {"from", "value"} <= set(message):
        refuse(where, f"{name} must have role and content, or from and value; found {quoted(_keys(value))}")
    speaker, text = message["from"], message["value"]
    if speaker not in SPEAKERS:
        problem = f"{name}.from is {quoted(str(speaker), 40)}, known are {', '.join(SPEAKERS)}"
        refuse(where, problem, "write it as role and content")
    if not isinstance(text, str):
        refuse(where, f"{name}.value must be text, found {type(text).__name__}")
    return {"role": SPEAKERS[speaker], "content": text}


def _keys(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__


def _content(value: object, key: str, where: str, wanted: type | None) -> str | Tokens:
    if isinstance(value, str) and wanted is not list:
        return encodable(value, key, where)
    if isinstance(value, list) and wanted is not str:
        return _token_list(value, key, where)
    forms = {"str": "text", "list": "a list of token ids"}
    expected = " or ".join(forms.values()) if wanted is None else forms[wanted.__name__]
    refuse(where, f"{key} must be {expected}, found {type(value).__name__}")


def encodable(text: str, key: str, where: str) -> str:
    """Return `text`; refuse half of a surrogate pair, which JSON can spell and UTF-8 cannot.

    Raises:
        InputRefused: E_PROBE_SOURCE.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        refuse(where, f"{key} holds half of a surrogate pair")
    return text


def _token_list(values: list[Any], key: str, where: str) -> Tokens:
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_TOKEN:
            refuse(where, f"{key} must hold integers from 0 to {MAX_TOKEN}, found {quoted(str(value), 40)}")
    return np.array(values, dtype=np.int64)
