"""Read ``adapter_config.json`` so that no key that changes the meaning of an adapter goes unnoticed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_atlas.checkpoint.headers.refuse import refusal, shown
from moe_atlas.errors import InputRefused
from moe_atlas.options import ADAPTER_PACKINGS

INERT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode"),
        *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
        *("eva_config", "ensure_weight_tying"),
    }
)
"""Keys that say how the adapter was trained or written. The tensors show what they decided."""
INITIAL = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are."""
EMPTY: tuple[Any, ...] = (None, False, [], {})
_PATTERN_CHARACTERS, _REPEATS = 512, 4
_LARGEST = 1e15
MERGE = (
    "merge it with PEFT: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(OUT), "
    "and give OUT"
)


@dataclass(frozen=True)
class Settings:
    """What an adapter's configuration says about the meaning of its tensors.

    Attributes:
        r: default rank.
        alpha: default numerator of the scale.
        ranks: ranks of the modules whose names match a pattern; the first match counts.
        alphas: numerators of the scale of the modules whose names match a pattern; the first match counts.
        rank_stabilised: whether the scale is alpha/√r instead of alpha/r (rsLoRA).
        dora: whether a magnitude for each row replaces the norm of the row (DoRA).
        copied: endings of the names of the modules of which the adapter trains and saves a copy.
        parameters: endings of the names of the parameters that the adapter changes without a module.
        version: the version of PEFT that wrote the adapter; empty if the configuration does not say.
        packing: how B of a stack of experts is packed; None if the configuration does not say.
        unsloth: whether the configuration has the mark of unsloth.
        base: the base that the configuration names; empty if it names none.
    """

    r: int
    alpha: float
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    copied: tuple[str, ...]
    parameters: tuple[str, ...]
    version: str
    packing: str | None
    unsloth: bool
    base: str

    def rank(self, key: str) -> int:
        """Return the rank of a module or parameter."""
        return int(_first_match(self.ranks, key, self.r))

    def numerator(self, key: str) -> float:
        """Return the numerator of the scale of a module or parameter."""
        return _first_match(self.alphas, key, self.alpha)

    def scale(self, key: str) -> float:
        """Return the factor of B·A of a module or parameter: alpha/r, or alpha/√r."""
        rank = self.rank(key)
        return self.numerator(key) / (math.sqrt(rank) if self.rank_stabilised else rank)

    def parameter(self, key: str) -> bool:
        """Return whether `target_parameters` names this parameter."""
        return _ends(key, self.parameters)

    def copies(self, module: str) -> bool:
        """Return whether `modules_to_save` names this module."""
        return _ends(module, self.copied)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _first_match(patterns: Mapping[str, float], key: str, default: float) -> float:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", key):
            return value
    return default


def read_settings(config: Mapping[str, Any], where: str) -> Settings:
    """Return the settings of an adapter.

    Args:
        config: the content of ``adapter_config.json``.
        where: the path of the file, for messages.

    Raises:
        InputRefused: ``E_ADAPTER`` for another method than LoRA, a key that nothing reads and that is not empty, an
            initialisation that changes the base's weights, or a value of another type or range.
    """
    read = _Keys(config, where)
    read.require_lora()
    settings = Settings(
        r=read.rank("r"),
        alpha=read.number("lora_alpha", 8),
        ranks=read.patterns("rank_pattern", whole=True),
        alphas=read.patterns("alpha_pattern"),
        rank_stabilised=read.flag("use_rslora"),
        dora=read.flag("use_dora"),
        copied=read.names("modules_to_save"),
        parameters=read.names("target_parameters"),
        version=read.text("peft_version"),
        packing=read.packing(),
        unsloth=read.marked("auto_mapping", "unsloth_fixed"),
        base=read.text("base_model_name_or_path"),
    )
    read.refuse_unread()
    return settings


class _Keys:
    """The keys of one configuration; remembers which were read."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self._read = {"peft_type", "init_lora_weights"}

    def require_lora(self) -> None:
        kind, initial = self._config.get("peft_type"), self._config.get("init_lora_weights", True)
        if kind != "LORA":
            raise self._refuse("peft_type", f"expected LORA, found {_value(kind)}")
        if initial is not None and not any(
            type(initial) is type(known) and initial == known for known in INITIAL
        ):
            problem = (
                f"{_value(initial)} changes the base's weights, or is not known to leave them as they are"
            )
            raise self._refuse("init_lora_weights", problem)

    def rank(self, key: str) -> int:
        value = self._get(key, 8)
        if type(value) is not int or value < 1:
            raise self._refuse(key, f"expected a positive whole number, found {_value(value)}")
        return value

    def number(self, key: str, default: float) -> float:
        return self._number(key, self._get(key, default))

    def flag(self, key: str) -> bool:
        value = self._get(key, False)
        if type(value) is not bool:
            raise self._refuse(key, f"expected true or false, found {_value(value)}")
        return value

    def text(self, key: str) -> str:
        value = self._get(key, None)
        if value is not None and not isinstance(value, str):
            raise self._refuse(key, f"expected a string, found {_value(value)}")
        return value or ""

    def marked(self, key: str, mark: str) -> bool:
        value = self._get(key, None)
        return isinstance(value, dict) and mark in value

    def names(self, key: str) -> tuple[str, ...]:
        value = self._get(key, None) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._refuse(key, f"expected a list of names, found {_value(value)}")
        return tuple(value)

    def packing(self) -> str | None:
        value = self._get("lora_B_layout", None)
        if value is not None and value not in ADAPTER_PACKINGS:
            raise self._refuse(
                "lora_B_layout", f"expected {' or '.join(ADAPTER_PACKINGS)}, found {_value(value)}"
            )
        return None if value is None else str(value)

    def patterns(self, key: str, *, whole: bool = False) -> Mapping[str, float]:
        value = self._get(key, None) or {}
        if not isinstance(value, dict):
            raise self._refuse(key, f"expected an object, found {_value(value)}")
        for pattern, number in value.items():
            self._pattern(key, pattern)
            if whole and (type(number) is not int or number < 1):
                raise self._refuse(key, f"expected a positive whole number, found {_value(number)}")
            self._number(key, number)
        return dict(value)

    def _pattern(self, key: str, pattern: str) -> None:
        """Refuse a pattern that is no regular expression, or that could take forever to match."""
        try:
            re.compile(pattern)
        except re.error as error:
            raise self._refuse(key, f"{_value(pattern)} is no regular expression ({error})") from None
        repeats = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > _PATTERN_CHARACTERS or repeats > _REPEATS or re.search(r"\)[*+{]", pattern):
            problem = f"{_value(pattern)} repeats a group, repeats more than {_REPEATS} parts, or is too long"
            raise self._refuse(key, problem)

    def _number(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not abs(value) <= _LARGEST:
            raise self._refuse(key, f"expected a number, found {_value(value)}")
        return value if type(value) is int else float(value)

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        return self._config.get(key, default)

    def refuse_unread(self) -> None:
        """Refuse a key that nothing reads, unless it is empty or known to change nothing."""
        for key, value in self._config.items():
            known = key in self._read or key in INERT
            if not known and not any(value == empty and type(value) is type(empty) for empty in EMPTY):
                problem = f"nothing reads this key, and {_value(value)} could change what the tensors mean"
                raise self._refuse(key, problem)

    def _refuse(self, key: str, problem: str) -> InputRefused:
        return refusal("E_ADAPTER", self._where, problem, MERGE, name=key)


def _value(value: Any) -> str:
    return shown(repr(value))
