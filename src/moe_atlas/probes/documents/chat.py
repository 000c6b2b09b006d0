"""Render conversations through the checkpoint's own template, and find the characters that the model wrote.

A template with ``{% generation %}`` blocks marks these characters itself. Otherwise the renderings of parts of the
conversation locate each assistant turn. The turn begins where the rendering of the messages before it ends, including
the header that a server writes (`add_generation_prompt`). It ends where the rendering of all messages up to and
including it ends. Some templates write an earlier turn differently from the last turn (without its reasoning, with
another end token). There the rendering of the conversation without the turn locates the end. If neither rendering
locates the turn, the conversation is refused, because its scored tokens would be unknown.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from moe_atlas.errors import InputRefused, ResourceExhausted
from moe_atlas.probes.documents import chat_worker
from moe_atlas.probes.documents.chat_template import CODE, Template
from moe_atlas.probes.documents.rows import Conversation, encodable
from moe_atlas.text import quoted

SECONDS = 10.0
"""CPU time for one rendering."""

Span = tuple[int, int]
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message may hold its reasoning; transformers gives a template the first two."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: the text to tokenise, special tokens spelled out.
        spans: ascending spans of the characters that the model wrote.
    """

    text: str
    spans: tuple[Span, ...]


class Renderer:
    """Renders one template in a process of its own; `close` ends the process."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self._process = _start()
        reply = self._ask({"template": template.text, "seconds": SECONDS}, template.file)
        if "error" in reply:
            problem = f"is no chat template that can be rendered ({quoted(reply['error'], 200)})"
            raise InputRefused(CODE, template.file, problem, "restore it from the checkpoint")

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._process.kill()
        self._process.wait()

    def render(self, conversation: Conversation, where: str) -> Rendered:
        """Render a conversation.

        Raises:
            InputRefused: E_PROBE_TEMPLATE if the template refuses the conversation, if rendering does not end, or if
                the renderings do not show which characters the model wrote.
        """
        text, spans = self._text(conversation, where)
        encodable(text, "the rendered conversation", where)
        if spans is None:
            spans = [self._turn(conversation, number, text, where) for number in _turns(conversation)]
        elif conversation.first:
            start = len(self._before(conversation, conversation.first, text, where))
            spans = [span for span in spans if span[0] >= start]
        spans = [(start, end) for start, end in spans if start < end]
        if not spans:
            problem = "marks nothing in it as written by the model"
            self._refuse(where, problem, "take it out, or name another chat_template")
        return Rendered(text, tuple(spans))

    def _turn(self, conversation: Conversation, number: int, text: str, where: str) -> Span:
        """Return the span of an assistant turn within the whole text."""
        messages = conversation.messages
        before = self._before(conversation, number, text, where)
        with_turn = self._try(conversation, messages[: number + 1], where)
        if with_turn is not None and text.startswith(with_turn) and len(with_turn) >= len(before):
            return len(before), len(with_turn)
        plain = self._try(conversation, messages[:number], where)
        without = self._try(conversation, (*messages[:number], *messages[number + 1 :]), where)
        if plain is not None and without is not None and text.startswith(plain) and without.startswith(plain):
            rest = without[len(plain) :]
            if text.endswith(rest) and len(text) - len(rest) >= len(before):
                return len(before), len(text) - len(rest)
        problem = (
            f"renders message {number + 1} otherwise within the conversation, so where it ends cannot be told"
        )
        self._refuse(where, problem, _UNMARKED)

    def _before(self, conversation: Conversation, number: int, text: str, where: str) -> str:
        """Return the text before message `number`, including the header that a server writes if the text has it."""
        for header in (True, False):
            before = self._try(conversation, conversation.messages[:number], where, header)
            if before is not None and text.startswith(before):
                return before
        problem = (
            f"renders the {number} messages before message {number + 1} otherwise within the conversation"
        )
        self._refuse(where, problem, _UNMARKED)

    def _try(
        self,
        conversation: Conversation,
        messages: tuple[dict[str, Any], ...],
        where: str,
        header: bool = False,
    ) -> str | None:
        """Return the rendering of some messages, or None if the template refuses them; no messages give no text."""
        if not messages and not header:
            return ""
        reply = self._ask(_variables(self.template, conversation, messages, header), where)
        text = reply.get("text")
        return text if isinstance(text, str) else None

    def _text(self, conversation: Conversation, where: str) -> tuple[str, list[Span] | None]:
        reply = self._ask(_variables(self.template, conversation, conversation.messages, False), where)
        if "error" in reply:
            self._refuse(where, f"refuses it: {quoted(reply['error'], 200)}", "mend the row, or take it out")
        spans = reply["spans"]
        return reply["text"], None if spans is None else [(start, end) for start, end in spans]

    def _refuse(self, where: str, problem: str, next_step: str) -> NoReturn:
        raise InputRefused(CODE, where, f"the chat template ({self.template.file}) {problem}", next_step)

    def _ask(self, request: dict[str, Any], where: str) -> dict[str, Any]:
        """Send a request as one line, and return the reply."""
        reply = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            reply = self._process.stdout.readline()  # type: ignore[union-attr]
        if not reply:
            ended = self._process.wait()
            problem = (
                f"does not end within {SECONDS:g} s" if ended == -signal.SIGPROF else f"ended with {ended}"
            )
            raise InputRefused(CODE, where, f"rendering {problem}", "look into the chat template")
        answer: dict[str, Any] = json.loads(reply)
        return answer


_UNMARKED = "name a chat_template that marks assistant turns with {% generation %}"


def _turns(conversation: Conversation) -> list[int]:
    return [
        n
        for n, message in enumerate(conversation.messages)
        if n >= conversation.first and message["role"] == "assistant"
    ]


def _variables(
    template: Template, conversation: Conversation, messages: tuple[dict[str, Any], ...], header: bool
) -> dict[str, Any]:
    """Return all variables that a template gets."""
    return {
        **template.special,
        "messages": [_reasoned(message) for message in messages],
        "tools": list(conversation.tools) or None,
        "documents": None,
        "add_generation_prompt": header,
    }


def _reasoned(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its reasoning under both keys that templates read, as transformers gives it."""
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    return (
        message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
    )


def _start() -> subprocess.Popen[str]:
    import jinja2  # noqa: PLC0415  only to find its folder
    import markupsafe  # noqa: PLC0415

    places = [str(Path(module.__file__ or "").parents[1]) for module in (jinja2, markupsafe)]
    command = [sys.executable, "-I", chat_worker.__file__, *places]
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            cwd="/",
            env=kept,
        )
    except OSError as error:
        problem = f"cannot be started ({error.strerror})"
        raise ResourceExhausted(
            "E_PROCESS", sys.executable, problem, "free some memory or processes"
        ) from error
