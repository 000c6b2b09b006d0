"""Reading config.json so that nothing in it is ignored unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_atlas.errors import InputRefused

INERT = frozenset(
    # identity, training and generation: never part of the forward pass in evaluation
    [
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "_attn_implementation",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "auto_map",
        "aux_loss_alpha",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "ep_size",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "keep_last_n_layers",
        "label2id",
        "max_length",
        "max_position_embeddings",
        "max_window_layers",
        "model_max_length",
        "model_type",
        "moe_aux_loss_coef",
        "num_mtp_layers",
        "num_nextn_predict_layers",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "seq_aux",
        "sep_token_id",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unk_token_id",
        "use_cache",
        "use_bfloat16",
        "use_return_dict",
    ]
)
"""Keys that change no number of an evaluation forward pass in any supported family."""

_REQUIRED: Any = object()


class Config:
    """A config.json section that remembers which keys were read.

    Args:
        values: the parsed section.
        where: what to call it in messages.
        file: the family's own source file, for whoever has to teach it a key.
    """

    def __init__(self, values: Mapping[str, Any], where: str, file: str = "moe_atlas/families") -> None:
        self.values = values
        self.where = where
        self.file = file
        self._read: set[str] = set()
        self._children: dict[str, Config] = {}

    def get(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The value under the first of `names` that is present and not null.

        Aliases that are present with different values are refused, and so is a missing key without default.
        """
        self._read.update(names)
        found = {name: self.values[name] for name in names if self.values.get(name) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            raise self.refuse(
                ", ".join(f"{k} = {v!r}" for k, v in found.items()), "aliases with different values"
            )
        if found:
            return next(iter(found.values()))
        if default is _REQUIRED:
            raise self.refuse(names[0], "the key is missing, and the family has no safe default for it")
        return default

    def integer(self, *names: str, default: Any = _REQUIRED) -> int:
        """A whole number."""
        value: int = self._typed(names, self.get(*names, default=default), int)
        return value

    def number(self, *names: str, default: Any = _REQUIRED) -> float:
        """A finite number, returned as float."""
        value = self.get(*names, default=default)
        return float(value) if type(value) is int else self._typed(names, value, float)

    def flag(self, *names: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value: bool = self._typed(names, self.get(*names, default=default), bool)
        return value

    def text(self, *names: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value: str = self._typed(names, self.get(*names, default=default), str)
        return value

    def optional(self, *names: str) -> Any:
        """The value, or None when the key is missing or null."""
        return self.get(*names, default=None)

    def integers(self, *names: str, default: Any = _REQUIRED) -> list[int]:
        """A list of whole numbers."""
        values = self._typed(names, self.get(*names, default=default), list)
        return [self._typed(names, value, int) for value in values]

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse unless the key is absent, null or one of the values that the family computes."""
        value = self.optional(name)
        if value is not None and value not in allowed:
            known = ", ".join(repr(item) for item in allowed)
            raise self.refuse(f"{name} = {value!r}", f"this family is implemented for {known} only")

    def inert(self, *names: str) -> None:
        """Declare keys that change no number in this family."""
        self._read.update(names)

    def section(self, name: str) -> Config | None:
        """A nested object, tracked like this one; None when missing or null."""
        value = self.optional(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(f"{name} = {value!r}", "expected an object")
        return self._children.setdefault(name, Config(value, f"{self.where}: {name}", self.file))

    def refuse_unread(self) -> None:
        """Refuse the first key that nothing has read, unless it is empty or known to be inert."""
        for name, value in self.values.items():
            if name in self._read or name in INERT or value is None or value == {} or value == []:
                continue
            raise self.refuse(
                f"{name} = {value!r}",
                "the key is read by nothing and might change the mathematics",
                f"remove the key if it has no effect, or teach {self.file} to read it, or to list it as inert with the "
                "reason",
            )
        for child in self._children.values():
            child.refuse_unread()

    def refuse(self, key: str, problem: str, next_step: str = "") -> InputRefused:
        """An `E_FAMILY` error about one key of this section."""
        return InputRefused("E_FAMILY", f"{self.where}: {key}", problem, next_step)

    def _typed(self, names: tuple[str, ...], value: Any, kind: type) -> Any:
        if type(value) is not kind:
            raise self.refuse(f"{names[0]} = {value!r}", f"expected {kind.__name__}")
        return value
