"""From an adapter's pairs of factors to changes of the base's tensors.

A stack of experts is changed expert by expert, whatever the base's layout: each matrix of an expert gets its rows of
the expert's change. Where bytes and shapes allow two readings of a stack, the adapter is refused until an option says
which one is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from moe_atlas.adapters.adapted import Adapted, Cut, Factors, Update
from moe_atlas.adapters.keys import PREFIX, Pair, refuse
from moe_atlas.adapters.settings import Settings
from moe_atlas.adapters.targets import Targets
from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.checkpoint.source import Derived, Logical
from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.spec import LayerSpec, MoESpec, TensorRef
from moe_atlas.options import ADAPTER_PACKINGS, ADAPTER_SIDES, BY_EXPERT, ON_INPUT, ON_OUTPUT, RANK_MAJOR

_OTHER_BASE = "give the base on which the adapter was trained"


@dataclass(frozen=True)
class Matched:
    """What an adapter does to the tensors of a base.

    Attributes:
        derived: every tensor that the adapter changes or replaces, by the base's name.
        modules: number of pairs of factors.
        replaced: number of whole tensors that replace the base's.
        packing: how B of stacks of experts was read; None where there is no such choice.
        side: which side A of stacks of experts was read on; None where there is no such choice.
        ranks: ranks of the pairs.
        numerators: numerators of the scales of the pairs.
    """

    derived: Mapping[str, Derived]
    modules: int
    replaced: int
    packing: str | None
    side: str | None
    ranks: frozenset[int]
    numerators: frozenset[float]


class _Stack(NamedTuple):
    """A pair of factors for a stack of experts, and the readings that its shapes allow.

    Attributes:
        pair: the factors.
        layer: the routed layer.
        readings: parameter (`first` or `down_proj`) and side of A.
    """

    pair: Pair
    layer: LayerSpec
    readings: tuple[tuple[str, str], ...]


@dataclass
class Matcher:
    """Matches one adapter with one base.

    Attributes:
        settings: the adapter's settings.
        targets: the base's tensors by name.
        merged: whether sums are rounded to the base's dtype.
        layouts: readings that the user chose, see `options.AdapterLayout`.
        label: the adapter's path, for messages.
    """

    settings: Settings
    targets: Targets
    merged: bool
    layouts: Sequence[str]
    label: str
    _updates: dict[str, dict[int | None, list[Update]]] = field(default_factory=dict)
    _whole: dict[str, StoredTensor] = field(default_factory=dict)
    _ranks: set[int] = field(default_factory=set)
    _numerators: set[float] = field(default_factory=set)

    def match(self, pairs: Sequence[Pair], whole: Mapping[str, StoredTensor]) -> Matched:
        """Return what the adapter does.

        Raises:
            InputRefused: ``E_ADAPTER`` for a tensor that belongs to no tensor of the base, a shape that does not fit,
                a rank that is not the configuration's, or a stack of experts that can be read in two ways.
        """
        for name, tensor in whole.items():
            self._replace(name, tensor)
        self._refuse_half_a_tie(whole)
        stacks = []
        for pair in pairs:
            layer = self.targets.experts_of(pair.module)
            if layer is None or layer.moe is None:
                self._matrix(pair)
            else:
                stacks.append(self._stack(pair, layer, layer.moe))
        side = self._side(stacks)
        packing = self._packing(stacks)
        for stack in stacks:
            self._experts(stack, side, packing)
        factors = Factors()
        names = self._updates.keys() | self._whole.keys()
        derived = {name: self._adapted(name, factors) for name in sorted(names)}
        return Matched(
            derived,
            len(pairs),
            len(whole),
            packing,
            side,
            frozenset(self._ranks),
            frozenset(self._numerators),
        )

    def _replace(self, name: str, tensor: StoredTensor) -> None:
        """Let a whole tensor of the adapter take the place of the base's."""
        ref = self.targets.find(name)
        if ref is None:
            raise self._unmatched(tensor.name)
        if not ref.whole:
            raise refuse(self.label, tensor.name, "replaces a part of a stored tensor, which is not read")
        own, resized = tuple(tensor.shape), ref.role in ("embedding", "head")
        if own != ref.shape and not (resized and own[1:] == ref.shape[1:]):
            raise self._misshapen(tensor, ref.shape, own)
        tied = ref.role == "head" and self.targets.spec.tied
        self._whole[name if tied else ref.stored] = tensor

    def _refuse_half_a_tie(self, names: Iterable[str]) -> None:
        """Refuse the copy of an embedding or of a head alone, where the base has one tensor for both.

        PEFT trains a copy of a module of `modules_to_save`, which is not tied any more. Any other tensor of the
        embedding is the base's own parameter, which head and embedding share.
        """
        spec = self.targets.spec
        ends = [name for name in names if name.endswith("lm_head.weight") or self._is_embedding(name)]
        if not spec.tied or len(ends) != 1:
            return
        if not self._is_embedding(ends[0]) or self.settings.copies(ends[0].removesuffix(".weight")):
            problem = "replaces the embedding or the head alone, and the base ties them"
            raise refuse(self.label, PREFIX + ends[0], problem)

    def _is_embedding(self, name: str) -> bool:
        ref = self.targets.find(name)
        return ref is not None and ref.role == "embedding"

    def _matrix(self, pair: Pair) -> None:
        """Match a pair of factors of one matrix."""
        parameter, ref = self._parameter(pair)
        if ref is None:
            raise self._unmatched(pair.a.name)
        if pair.depth:
            raise refuse(
                self.label, pair.a.name, "several parameters of this module are changed, which is not read"
            )
        direct = self.settings.parameter(parameter)
        key = parameter if direct else pair.module
        self._require_rank(key, pair, 1)
        shape, turned = self._fit(pair, ref)
        update = Update(
            pair.a.name,
            pair.b.name,
            self.settings.scale(key),
            embedding=pair.embedding,
            turned=turned,
            into=ref.rows,
            transpose=ref.transpose,
            magnitude=self._magnitude(pair, shape[0]),
            first=self.merged and (direct or pair.embedding),
        )
        self._add(ref, update)

    def _fit(self, pair: Pair, ref: TensorRef) -> tuple[tuple[int, int], bool]:
        """Return the shape of B·A, and whether the change is its transpose."""
        own = ref.shape if ref.stored not in self._whole else tuple(self._whole[ref.stored].shape)
        shape = (pair.b.shape[0], pair.a.shape[1])
        turned = ref.transpose and shape != own and shape[::-1] == own
        expected = own[::-1] if turned or pair.embedding else own
        if shape != expected:
            raise self._misshapen(pair.b, expected, shape)
        return shape, turned

    def _parameter(self, pair: Pair) -> tuple[str, TensorRef | None]:
        """Return the name of the parameter that a pair changes, and where the base stores it."""
        weight = f"{pair.module}.weight"
        ref = self.targets.find(weight)
        if ref is not None:
            return weight, ref
        named = [
            f"{pair.module}.{ending.rpartition('.')[2]}"
            for ending in self.settings.parameters
            if f".{pair.module}".endswith(f".{ending.rpartition('.')[0]}")
        ]
        found = [(name, ref) for name in named if (ref := self.targets.find(name)) is not None]
        return found[0] if len(found) == 1 else (weight, None)

    def _magnitude(self, pair: Pair, rows: int) -> str | None:
        found = pair.magnitude
        if (found is None) == self.settings.dora:
            said = (
                "has no magnitude, and use_dora is true"
                if found is None
                else "is a magnitude, and use_dora is false"
            )
            raise refuse(self.label, (found or pair.a).name, said)
        if found is None:
            return None
        if pair.embedding:
            raise refuse(self.label, found.name, "the magnitudes of an embedding (DoRA) are not read")
        if tuple(found.shape) not in ((rows,), (rows, 1), (1, rows)):
            raise self._misshapen(found, (rows,), tuple(found.shape))
        return found.name

    def _require_rank(self, key: str, pair: Pair, experts: int) -> None:
        """Refuse factors of another rank than the configuration's, on which their scale depends."""
        rank = self.settings.rank(key)
        for tensor, found in ((pair.a, pair.a.shape[0]), (pair.b, pair.b.shape[1])):
            if found != rank * experts:
                where = f" for each of {experts} experts" if experts > 1 else ""
                problem = f"adapter_config.json gives {key} the rank {rank}{where}, the tensor has {found}"
                raise refuse(
                    self.label, tensor.name, problem, "give the adapter with its own adapter_config.json"
                )
        self._ranks.add(rank)
        self._numerators.add(self.settings.numerator(key))

    def _stack(self, pair: Pair, layer: LayerSpec, moe: MoESpec) -> _Stack:
        """Return the readings of a pair of factors for a stack of experts that its shapes allow."""
        if pair.magnitude is not None or pair.embedding:
            raise refuse(
                self.label, (pair.magnitude or pair.a).name, "this part of a stack of experts is not read"
            )
        sizes = {"first": (moe.w1_rows, moe.width), "down_proj": (moe.width, moe.expert_width)}
        own = (pair.b.shape[0], pair.a.shape[1])
        readings = [
            (name, side)
            for name, size in sizes.items()
            for side, shape in ((ON_INPUT, size), (ON_OUTPUT, size[::-1]))
            if own == shape
        ]
        if not readings:
            both = " or ".join(str(list(size)) for size in sizes.values())
            problem = f"changes matrices of shape {list(own)}, the base's experts have {both}"
            raise refuse(self.label, pair.b.name, problem, _OTHER_BASE)
        return _Stack(pair, layer, tuple(readings))

    def _side(self, stacks: Sequence[_Stack]) -> str | None:
        """Return which side of the experts' matrices A is on, from the option, the shapes or PEFT's version."""
        if not stacks:
            if self.layouts:
                problem = "the adapter changes no stack of experts"
                raise UsageError("E_ADAPTER", "--adapter-layout", problem, "leave the option out")
            return None
        chosen = next((one for one in self.layouts if one in ADAPTER_SIDES), None)
        allowed = [{side for _, side in stack.readings} for stack in stacks]
        certain = {side for sides in allowed if len(sides) == 1 for side in sides}
        if len(certain) == 1:
            self._require_agreement(chosen, next(iter(certain)), "the shapes")
            return certain.pop()
        split = all(stack.layer.moe and stack.layer.moe.bound_layout.kind == "split" for stack in stacks)
        by_version = _side_of(self.settings.version) if split and not certain else None
        if chosen or by_version:
            return chosen or by_version
        pair = stacks[0].pair
        shape = [pair.b.shape[0], pair.a.shape[1]]
        problem = (
            f"a change of experts of shape {shape} can be read in two ways: with A on the side of their inputs (PEFT "
            "from 0.19.1 on), or on that of their outputs (PEFT 0.17 and 0.18 where experts are output by input)"
        )
        step = f"say which one is meant: --adapter-layout {ON_INPUT} or --adapter-layout {ON_OUTPUT}"
        raise refuse(self.label, pair.a.name, problem, step)

    def _packing(self, stacks: Sequence[_Stack]) -> str | None:
        """Return how B of stacks of experts is packed, from the option or the configuration."""
        if not stacks:
            return None
        chosen, said = (
            next((one for one in self.layouts if one in ADAPTER_PACKINGS), None),
            self.settings.packing,
        )
        if said is not None:
            self._require_agreement(chosen, said, "adapter_config.json")
        if chosen or said:
            return chosen or said
        known = self.settings.version and not self.settings.unsloth
        if known or all(_alike(stack) for stack in stacks):
            return RANK_MAJOR
        problem = (
            "B of a stack of experts can be packed in two ways, and nothing says which one: the expert varies fastest "
            f"({RANK_MAJOR}, as PEFT and unsloth since September 2026 train it), or slowest ({BY_EXPERT}, as older "
            "versions of unsloth do); the wrong one gives every expert the changes of others"
        )
        step = f"say which one is meant: --adapter-layout {RANK_MAJOR} or --adapter-layout {BY_EXPERT}"
        raise refuse(self.label, stacks[0].pair.b.name, problem, step)

    def _require_agreement(self, chosen: str | None, said: str, what: str) -> None:
        if chosen not in (None, said):
            problem = f"{what} of the adapter says {said}, the option says {chosen}"
            raise UsageError("E_ADAPTER", "--adapter-layout", problem, "leave the option out")

    def _experts(self, stack: _Stack, side: str | None, packing: str | None) -> None:
        """Add the changes of every matrix of every expert of one stack."""
        pair, moe = stack.pair, stack.layer.moe
        names = [name for name, own in stack.readings if own == side]
        if moe is None or len(names) != 1:
            raise refuse(self.label, pair.b.name, f"its shape does not fit experts that are read as {side}")
        count = moe.router.experts - moe.identity_experts
        first = "gate_up_proj" if moe.gated else "up_proj"
        key = f"{pair.module}.{first if names[0] == 'first' else names[0]}"
        self._require_rank(key, pair, count)
        for expert in range(count):
            for ref, out in _rows_of(moe, names[0], expert):
                self._add(
                    ref,
                    Update(
                        pair.a.name, pair.b.name, self.settings.scale(key), turned=side == ON_OUTPUT, out=out,
                        expert=(expert, count, packing == BY_EXPERT), into=ref.rows, transpose=ref.transpose,
                        first=self.merged,
                    ),
                )  # fmt: skip

    def _add(self, ref: TensorRef, update: Update) -> None:
        spec = self.targets.spec
        if not self.merged and spec.tied and ref.stored == spec.embed_refs[0].stored:
            problem = "changes the embedding or the head alone when it is not merged, and the base ties them"
            raise refuse(self.label, update.a, problem, "read it as merged: --adapter-as merged")
        if ref.span is not None:
            raise refuse(
                self.label, update.a, "changes experts that are stored in one matrix, which is not read"
            )
        entries = self._updates.setdefault(ref.stored, {})
        same = [one for one in entries.get(ref.index, []) if (one.into, one.out) == (update.into, update.out)]
        if same:
            raise refuse(self.label, update.a, f"changes what {same[0].a} changes")
        entries.setdefault(ref.index, []).append(update)

    def _adapted(self, name: str, factors: Factors) -> Adapted:
        base, whole = self.targets.logical.get(name), self._whole.get(name)
        updates = {entry: tuple(found) for entry, found in self._updates.get(name, {}).items()}
        changed: Logical | None = whole if whole is not None else base
        assert changed is not None, name
        plain = base if isinstance(base, StoredTensor) else None
        dtype = "F32"
        if plain is not None and self.merged:
            dtype = plain.dtype
        elif whole is not None and not updates:
            dtype = whole.dtype
        return Adapted(
            name=name,
            shape=tuple(changed.shape),
            dtype=dtype,
            source=name if whole is None else whole.name,
            parts=getattr(changed, "parts", {"": name if whole is None else whole.name}),
            encoding=getattr(changed, "encoding", None),
            updates=updates,
            factors=factors,
        )

    def _unmatched(self, name: str) -> InputRefused:
        return refuse(self.label, name, "belongs to no tensor of the base", _OTHER_BASE)

    def _misshapen(self, tensor: StoredTensor, expected: Sequence[int], found: Sequence[int]) -> InputRefused:
        problem = f"fits a tensor of shape {list(found)}, the base's has {list(expected)}"
        return refuse(self.label, tensor.name, problem, _OTHER_BASE)


def _alike(stack: _Stack) -> bool:
    """Return whether both packings of B are the same: one expert, or rank 1."""
    moe, columns = stack.layer.moe, stack.pair.b.shape[1]
    return moe is not None and (moe.router.experts - moe.identity_experts) in (1, columns)


def _side_of(version: str) -> str | None:
    """Return the side of A in adapters of a version of PEFT, for experts that the class stores output by input."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    number = tuple(int(part or 0) for part in found.groups()) if found else ()
    if number >= (0, 19, 1):
        return ON_INPUT
    return ON_OUTPUT if number[:2] in ((0, 17), (0, 18)) else None


def _rows_of(moe: MoESpec, parameter: str, expert: int) -> Iterator[tuple[TensorRef, Cut | None]]:
    """Yield the matrices of an expert that a parameter of the class holds, each with its rows of the parameter."""
    height, interleaved = moe.experts.width, moe.bound_layout.interleaved
    for ref in expert_refs(moe, expert):
        matrix = ref.role
        if "." in matrix or (matrix == "down_proj") != (parameter == "down_proj"):
            continue
        if matrix == "down_proj" or not moe.gated:
            yield ref, None
        else:
            second = int(matrix == "up_proj")
            cut = (second, 2 * height, 2) if interleaved else (second * height, (second + 1) * height, 1)
            yield ref, cut
