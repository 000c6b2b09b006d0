"""Render chat templates in a process of its own, which receives nothing but one JSON line per request.

A template comes with a checkpoint and is no more trusted than the checkpoint. jinja2's immutable sandbox keeps the
template from Python's internals. The process keeps endless loops and huge numbers of the template away from the audit.
The module imports nothing of the package, so that the process can have tight limits. `chat.Renderer` sends the
requests.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])  # jinja2's folder, for an interpreter that ignores its user's settings

import json
import re
import resource
import secrets
import signal
from datetime import datetime
from typing import Any

import jinja2  # noqa: E402
from jinja2 import nodes  # noqa: E402
from jinja2.ext import Extension, loopcontrols  # noqa: E402
from jinja2.parser import Parser  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

MEMORY = 1 << 30  # bytes
MOST = 16 << 20  # characters of one rendering
TODAY = datetime(2024, 7, 26)
"""Today's date for every template: a probe's text must not change at midnight. Llama's templates default to it."""

_FORMAT = re.compile(r"(?:[^%]|%-?[aAbBdHIjmMpSUwWyYeFT%]){0,64}\Z")


class _Generation(Extension):
    """``{% generation %}`` … ``{% endgeneration %}``: sets the text that the model writes between two marks."""

    tags = {"generation"}

    environment: _Environment

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        self.environment.has_generation = True
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{self.environment.mark}{caller()}{self.environment.mark}"


class _Environment(ImmutableSandboxedEnvironment):
    """The functions that transformers gives a template, without random numbers and without powers."""

    intercepted_binops = frozenset(["**"])
    has_generation = False
    mark = ""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        raise jinja2.exceptions.SecurityError("powers are not computed")


def environment() -> _Environment:
    """Return the environment of a template with the settings of transformers' ``apply_chat_template``."""
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _strftime}
    del made.filters["random"], made.globals["lipsum"]
    return made


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; jinja2's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: object) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _strftime(pattern: str) -> str:
    if not _FORMAT.match(pattern):
        raise jinja2.exceptions.SecurityError("this date format is not computed")
    return TODAY.strftime(pattern)


def render(made: _Environment, template: jinja2.Template, variables: dict[str, Any]) -> dict[str, Any]:
    """Return the text and the spans that the template marks as the model's; None if it has no such block."""
    mark = secrets.token_hex(16)
    made.mark = mark
    pieces: list[str] = []
    length = 0
    for piece in template.generate(**variables):
        length += len(piece)
        if length > MOST:
            return {"error": f"it is longer than {MOST} characters"}
        pieces.append(piece)
    parts = "".join(pieces).split(mark)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    spans = list(zip(ends[1:-1:2], ends[2::2], strict=False)) if made.has_generation else None
    return {"text": "".join(parts), "spans": spans}


def limit() -> None:
    """Limit memory, files and cores of this process, and let the CPU timer kill it at any point."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this process


def answer(made: _Environment, template: jinja2.Template | None, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request: the first holds the template, each later request holds variables to render it with."""
    try:
        if template is None:
            return {"compiled": made.from_string(request["template"])}
        return render(made, template, request)
    except MemoryError:
        return {"error": f"it needs more than {MEMORY} bytes of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # a template can raise whatever its expressions do
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    """Answer requests until the input ends."""
    limit()
    made, template, seconds = environment(), None, 1.0
    for line in sys.stdin:
        request = json.loads(line)
        if template is None:
            seconds = request["seconds"]
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = answer(made, template, request)
        template = reply.pop("compiled", template)
        body = json.dumps(reply)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(body, flush=True)


if __name__ == "__main__":
    main()
