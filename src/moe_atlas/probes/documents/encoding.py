"""Turn rows into token ids: plain text directly, conversations through a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moe_atlas.errors import InputRefused
from moe_atlas.probes.documents.chat import Renderer
from moe_atlas.probes.documents.chat_template import Template, find_template, special_tokens
from moe_atlas.probes.documents.rows import Conversation, Record, refuse
from moe_atlas.probes.documents.tokenizer import Marks, Tokenizer, Tokens, open_tokenizer
from moe_atlas.probes.reading.bounded_files import sha256_hex
from moe_atlas.probes.settings.schema import ProbeConfig
from moe_atlas.text import quoted


@dataclass(frozen=True)
class Part:
    """One row of a document as token ids.

    Attributes:
        tokens: token ids, int64 [T].
        counted: whether the prediction of each token counts, bool [T]; None if all count.
        rendered_sha256: digest of the rendered text of a conversation, None for other rows.
    """

    tokens: Tokens
    counted: Marks | None = None
    rendered_sha256: str | None = None


class Encoder:
    """Turns rows into token ids; `close` ends its rendering process.

    Attributes:
        tokenizer: the tokenizer that the probe file names, or the tokenizer given.
        bos: id of the special token at the start of every window, None if the probe file asks for none.
    """

    def __init__(self, config: ProbeConfig, tokenizer: Tokenizer | None = None) -> None:
        self._config, self._folder = config, config.path.parent
        self.tokenizer = tokenizer or open_tokenizer(config.tokenizer, self._folder)
        self.bos = None if config.special_tokens == "none" else self._bos()

    def close(self) -> None:
        """End the rendering process, if it was started."""
        if "_renderer" in self.__dict__:
            self._renderer.close()

    @property
    def template(self) -> Template | None:
        """Return the chat template if a row was rendered, else None."""
        return self._renderer.template if "_renderer" in self.__dict__ else None

    def part(self, record: Record) -> Part:
        """Return a row as token ids, without the special token at the start of every window.

        Raises:
            InputRefused: E_PROBE_SOURCE for an empty prompt, E_PROBE_TOKENIZER, E_PROBE_TEMPLATE.
        """
        if isinstance(record.content, Conversation):
            return self._bare(self._conversation(record.content, record.where))
        content = self._ids(record.content, record.where)
        if record.prompt is None:
            return self._bare(Part(content))
        prompt = self._ids(record.prompt, record.where)
        if not len(prompt):
            refuse(record.where, "the prompt is empty, so the completion's first token follows nothing")
        counted = np.arange(len(prompt) + len(content)) >= len(prompt)
        return self._bare(Part(np.concatenate([prompt, content]), counted))

    def _conversation(self, conversation: Conversation, where: str) -> Part:
        rendered = self._renderer.render(conversation, where)
        self._require_known(rendered.text, where)
        tokens, counted = self.tokenizer.encode_marked(rendered.text, rendered.spans, where)
        return Part(tokens, counted, sha256_hex(rendered.text.encode("utf-8")))

    def _bare(self, part: Part) -> Part:
        """Drop the special token that a template wrote at the start; every window gets it later."""
        if self.bos is None or not len(part.tokens) or part.tokens[0] != self.bos:
            return part
        counted = None if part.counted is None else part.counted[1:]
        return Part(part.tokens[1:], counted, part.rendered_sha256)

    def _ids(self, content: str | Tokens, where: str) -> Tokens:
        return self.tokenizer.encode(content, where) if isinstance(content, str) else content

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(find_template(self._folder, self._config.tokenizer, self._config.chat_template))

    def _require_known(self, text: str, where: str) -> None:
        """Refuse a special token that the tokenizer lacks: it would become several pieces, unlike in training."""
        if self.tokenizer.kind != "file":
            return
        for name, token in self._renderer.template.special.items():
            if token in text and self.tokenizer.token_id(token) is None:
                problem = (
                    f"the chat template writes {name} {quoted(token)}, which the tokenizer does not have"
                )
                step = "name the tokenizer.json that belongs to tokenizer_config.json"
                raise InputRefused("E_PROBE_TOKENIZER", where, problem, step)

    def _bos(self) -> int:
        """Return the id of the tokenizer's `bos_token`."""
        where, step = str(self._config.path), "leave special_tokens out"
        if self.tokenizer.kind != "file":
            raise InputRefused("E_PROBE_TOKENIZER", where, "special_tokens: bos needs a tokenizer.json", step)
        home = (self._folder / str(self._config.tokenizer)).parent
        token = special_tokens(home).get("bos_token")
        if token is None:
            problem = "special_tokens: bos, and no bos_token is named in tokenizer_config.json"
            raise InputRefused("E_PROBE_TOKENIZER", str(home), problem, f"the model has none, then {step}")
        number = self.tokenizer.token_id(token)
        if number is None:
            problem = f"special_tokens: bos, and the tokenizer does not have {quoted(token)}"
            raise InputRefused("E_PROBE_TOKENIZER", str(home), problem, step)
        return number
