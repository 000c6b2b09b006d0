"""Find a checkpoint's own chat template, and the special tokens that it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_atlas.checkpoint.headers.strict_json import parse_json_object
from moe_atlas.errors import InputRefused
from moe_atlas.probes.reading.bounded_files import read_bounded, sha256_hex
from moe_atlas.text import quoted

MAX_TEMPLATE_BYTES = 1 << 20
_MAX_JSON_BYTES = 64 << 20
CODE = "E_PROBE_TEMPLATE"
BESIDE = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
        file: the name of the template's file.
        text: the template.
        special: the special tokens that it may write, by their keys in tokenizer_config.json, such as `bos_token`.
    """

    file: str
    text: str = field(repr=False)
    special: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the lock's entry on the template."""
        return {"file": self.file, "sha256": sha256_hex(self.text.encode("utf-8", "surrogatepass"))}


def find_template(folder: Path, tokenizer: str | None, named: str | None) -> Template:
    """Return the template that a probe file names, or the template beside the tokenizer file.

    Args:
        folder: the folder of the probe file.
        tokenizer: the tokenizer as the probe file names it.
        named: the template file as the probe file names it.

    Raises:
        InputRefused: E_PROBE_TEMPLATE if there is no template, or if two files hold different templates.
    """
    home = None if tokenizer in (None, "bytes") else (folder / str(tokenizer)).parent
    special = {} if home is None else special_tokens(home)
    if named is not None:
        path = folder / named
        text = _template(path)
        if text is None:
            raise InputRefused(
                CODE, str(path), "holds no chat_template", "name a file that holds the template"
            )
        return Template(path.name, text, special)
    found = (
        {}
        if home is None
        else {name: text for name in BESIDE if (text := _template(home / name)) is not None}
    )
    if not found:
        where = "the probe file" if home is None else str(home)
        problem = f"has conversations to render, and there is no chat template{_beside(home)}"
        step = "name the model's tokenizer.json, or write chat_template: FILE into the probe file"
        raise InputRefused(CODE, where, problem, step)
    if len(set(found.values())) > 1:
        problem = f"{' and '.join(found)} hold different chat templates"
        raise InputRefused(CODE, str(home), problem, "name the one that is served: chat_template: FILE")
    return Template(*next(iter(found.items())), special)


def _beside(home: Path | None) -> str:
    return "" if home is None else f" in {', '.join(BESIDE)}"


def _template(path: Path) -> str | None:
    """Return a file's template (of several, ``default``); None if the file does not exist or holds no template."""
    if path.suffix != ".json":
        if path.name in BESIDE and not path.exists():
            return None
        return _utf8(read_bounded(path, MAX_TEMPLATE_BYTES, CODE), path)
    value = _json(path).get("chat_template")
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    if isinstance(value, dict):
        if "default" not in value:
            problem = f"has chat templates {', '.join(map(quoted, value))} and none called default"
            raise InputRefused(CODE, str(path), problem, "put one into a file, and write chat_template: FILE")
        value = value["default"]
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE_BYTES:
        problem = f"chat_template must be a text of at most {MAX_TEMPLATE_BYTES} characters"
        raise InputRefused(CODE, str(path), f"{problem}, found {type(value).__name__}", "restore the file")
    return value


def _utf8(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputRefused(
            CODE, str(path), f"is not UTF-8 (byte {error.start})", "save it as UTF-8"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty object if the file does not exist."""
    if not path.exists():
        return {}
    return parse_json_object(read_bounded(path, _MAX_JSON_BYTES, CODE), path.name)


def special_tokens(home: Path) -> dict[str, str]:
    """Return the named special tokens of the tokenizer in a folder, such as `bos_token`, without null entries.

    Raises:
        InputRefused: E_PROBE_TEMPLATE, E_JSON or E_DUP_KEY if a file beside the tokenizer cannot be read.
    """
    found: dict[str, str] = {}
    for name in (
        "special_tokens_map.json",
        "tokenizer_config.json",
    ):  # writers keep the second file up to date
        for key, value in _json(home / name).items():
            if isinstance(value, dict):
                value = value.get("content")
            if key.endswith("_token") and isinstance(value, str):
                found[key] = value
            elif key.endswith("_token") and value is None:
                found.pop(key, None)
    return found
