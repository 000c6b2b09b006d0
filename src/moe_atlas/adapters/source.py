"""A base as an adapter changes it: a source of tensors without a merged copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from moe_atlas.adapters.adapted import HELD
from moe_atlas.adapters.joined import Joined, join
from moe_atlas.adapters.keys import Pair, read_keys
from moe_atlas.adapters.match import Matched, Matcher
from moe_atlas.adapters.settings import Settings, read_settings
from moe_atlas.adapters.targets import Targets
from moe_atlas.checkpoint.digest import beginning
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.index import ADAPTER_CONFIG, ADAPTER_MODEL
from moe_atlas.checkpoint.source import Derived, TensorSource
from moe_atlas.models.spec import ModelSpec
from moe_atlas.options import AdapterAs


@dataclass
class AdaptedSource(Joined):
    """A base with an adapter, a `TensorSource`; nothing but headers and small files has been read yet.

    Attributes:
        settings: what the adapter's configuration says.
        pairs: its factors.
        whole: its tensors that replace tensors of the base, by the parameter's name in the class.
        reading: `merged` or `live`.
        matched: what it does to the base.
    """

    settings: Settings
    pairs: Sequence[Pair]
    whole: Mapping[str, StoredTensor]
    reading: AdapterAs
    matched: Matched

    @property
    def derived(self) -> Mapping[str, Derived]:
        """The base's tensors that the adapter changes."""
        return self.matched.derived

    @property
    def held_bytes(self) -> int:
        """The most bytes of factors that stay in memory."""
        sizes = [tensor.nbytes for pair in self.pairs for tensor in (pair.a, pair.b)]
        return sum(sorted(sizes)[-HELD:])

    def changes_nothing(self) -> bool:
        """Read the factors B until one is not zero; return whether there is none, and nothing else changes a tensor."""
        if self.whole or any(pair.magnitude is not None for pair in self.pairs):
            return False
        factors = {pair.b.name: pair.b for pair in self.pairs}
        alone = replace(self.adapter, tensors=MappingProxyType(factors))
        size = sum(tensor.nbytes for tensor in factors.values())
        return not any(piece.tobytes().strip(b"\0") for piece in beginning(alone, size))


def open_adapter(
    base: TensorSource,
    spec: ModelSpec,
    adapter: Path,
    reading: AdapterAs = "merged",
    layouts: Sequence[str] = (),
) -> AdaptedSource:
    """Open an adapter's folder together with its base, and find what the adapter changes.

    Args:
        base: the opened base.
        spec: its spec.
        adapter: the adapter's folder.
        reading: `merged` or `live`.
        layouts: readings of stacks of experts that the user chose, see `options.AdapterLayout`.

    Raises:
        InputRefused: every code of `open_adapter_folder`; ``E_ADAPTER`` for an adapter that is not read or does not
            fit the base, see `read_settings`, `read_keys` and `Matcher.match`.
    """
    both = join(base, adapter)
    folder, label = both.adapter, both.adapter.where(ADAPTER_MODEL)
    settings = read_settings(folder.config, folder.where(ADAPTER_CONFIG))
    pairs, whole = read_keys(folder.tensors, label)
    matcher = Matcher(settings, Targets(base.logical, spec), reading == "merged", layouts, label)
    return AdaptedSource(base, folder, settings, pairs, whole, reading, matcher.match(pairs, whole))
