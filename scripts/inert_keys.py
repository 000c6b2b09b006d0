"""Every configuration key that is accepted because it changes no number, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from moe_atlas.configuration.config import Config
from moe_atlas.configuration.features import STATED
from moe_atlas.configuration.unread import OFF, PATTERNS, REASONS
from moe_atlas.loading.registry import FAMILIES, TIED
from moe_atlas.loading.unsupported import TEXT_SECTIONS, section
from scripts import released
from scripts.oracle import tiny

MANY = 8  # more families than that are not listed one by one


def page() -> list[str]:
    """Lines of docs/families.md about them."""
    everywhere = [
        *((quoted(keys), why) for why, keys in REASONS.items()),
        *((f"names of the form {cell(pattern)}", why) for pattern, why in PATTERNS.items()),
        (quoted(" ".join(sorted(STATED))), "says what the model computes, where it does; else it is refused"),
        *OFF.items(),
    ]
    declared: dict[tuple[str, str], set[str]] = {}
    for family, key, why in declarations():
        declared.setdefault((place(key), why), set()).add(family)
    return [
        "",
        "## Keys that change nothing",
        "",
        "A key of config.json that its family does not read is refused, unless it is one of these. Any other can be",
        "accepted on the record with `--accept-config-key KEY=VALUE`, where no central policy forbids it.",
        "",
        "| in every family | because it |",
        "|---|---|",
        *(f"| {keys} | {why} |" for keys, why in everywhere),
        "",
        "| key | in | why it changes nothing there |",
        "|---|---|---|",
        *(f"| {key} | {families(where)} | {why} |" for (key, why), where in sorted(declared.items())),
    ]


def place(key: str) -> str:
    """A key as the page calls it: settings of a rotation may stand in either section, and by type of layer."""
    *sections, name = key.split(".")
    return f"`{name}` of the rotation" if sections and sections[0].startswith("rope_") else f"`{key}`"


def families(where: set[str]) -> str:
    return ", ".join(sorted(where)) if len(where) <= MANY else f"{len(where)} families"


def quoted(keys: str) -> str:
    return ", ".join(f"`{key}`" for key in keys.split())


def cell(code: str) -> str:
    """Code in a cell of a table, where a bar ends the cell."""
    return f"`{code}`".replace("|", r"\|")


def declarations() -> Iterator[tuple[str, str, str]]:
    """Family, key and reason of every key that a family itself declares inert, over all configurations at hand."""
    for config in (*map(tiny.config_of, tiny.CASES), *released.facts().values()):
        sections = [config, *(found for path in TEXT_SECTIONS if (found := section(config, path)))]
        for values in sections:
            if values.get("model_type") in FAMILIES:
                c = Config(
                    {**values, **({TIED: config[TIED]} if TIED in config else {})}, values["model_type"]
                )
                FAMILIES[values["model_type"]](c)
                yield from ((values["model_type"], key, why) for key, why in c.declarations().items())
