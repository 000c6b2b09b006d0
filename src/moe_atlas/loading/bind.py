"""Join a family's blueprint with the tensors that a checkpoint stores.

The checkpoint must store every tensor that the spec needs, with its shape. The spec must need every stored tensor, or
skip it for a stated reason. Any other checkpoint is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from moe_atlas.checkpoint.headers.header import StoredTensor
from moe_atlas.configuration.parts import Blueprint
from moe_atlas.errors import InputRefused
from moe_atlas.loading.wrapper_names import account
from moe_atlas.models import tensors
from moe_atlas.models.expert_refs import expert_refs
from moe_atlas.models.names import BARE, DECAYS, MLP, ROUTER_TABLE, kind_of, stored_suffix
from moe_atlas.models.spec import ExpertLayout, LayerSpec, ModelSpec, MoESpec, Skipped, TensorRef
from moe_atlas.models.tensors import Need

PREFIXES = (
    "model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.text_model.",
    "thinker.model.",
    "",
)
"""Prefixes under which a checkpoint may store its text model, instead of the canonical `model.`."""
ALL_EXPERTS = "switch_mlp"
"""Name of the module of all routed experts in MLX."""
END = (
    ": embedding and head have one row for each id, as many as the embedding stores, at least vocab_size",
    "resize both together (resize_token_embeddings) and save the model again",
)
AROUND = ("language_model.", "thinker.")
"""Prefixes under which a checkpoint may store the head of such a text model."""
OTHER_PARTS = (
    r"(^|\.)(visual|(embed_)?vision|vision_\w+|multi_modal_\w+|mm_\w+|embed_audio|audio_\w+|resampler_model|"
    r"talker|code2wav)\."
)
"""Parts of a multimodal model around its text model."""
OTHER_ENTRIES = "its other entries belong to other modalities"
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32")
ACTIVATION_SCALES = (
    ".input_scale",
    "_proj_input_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".output_scale",
    ".input_global_scale",
)


class Stored(Protocol):
    """A stored tensor, as far as binding uses it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; for a quantised tensor, the shape after decoding."""


def bind(blueprint: Blueprint, stored: Mapping[str, Stored], label: str) -> ModelSpec:
    """Return the blueprint's spec with a reference to a stored tensor for every tensor that it needs.

    Raises:
        InputRefused: `E_FAMILY` for a missing tensor, a wrong shape, or a tensor that nothing reads; the
            message counts missing and unread tensors, and names the program that renamed them if their names show it.
    """
    return _Binder(blueprint, stored, label).model()


class _Binder:
    def __init__(self, blueprint: Blueprint, stored: Mapping[str, Stored], label: str) -> None:
        self.blueprint, self.stored, self.label = blueprint, stored, label
        self.family = blueprint.model.family
        self.used: set[str] = set()
        self.missing: dict[str, tuple[int, ...]] = {}
        self.shared: set[str] = set()
        self.quantised = any(encoding_of(found) is not None for found in stored.values())
        self.prefix = self._find_prefix()

    def model(self) -> ModelSpec:
        spec = self._with_stored_rows(self.blueprint.model)
        self._refuse_added_one(spec)
        layers = tuple(self.layer(layer) for layer in spec.layers)
        embed = (self._embedding(spec),)
        final = [
            self.ref(role, shape, "")
            for role, shape in tensors.norm("final_norm", spec.width, spec.final_norm)
        ]
        if spec.streams is not None:
            count = spec.streams.count
            final += self._refs(list(tensors.streams("head_streams", spec.streams, spec.width, count, 1)), "")
        # If the checkpoint stores both head and embedding, the stored head is used, tied or not.
        tied = spec.tied and not all(name in self.stored for name in self._embedding_and_head_names())
        final += [replace(embed[0], role="head")] if tied else list(self._head(spec))
        bound = replace(spec, layers=layers, tied=tied)
        bound = replace(bound, embed_refs=embed, final_refs=tuple(final))
        skipped, unread = self._unused(bound)
        if self.missing or unread:
            raise self._unaccounted(unread)
        return replace(bound, skipped=tuple(skipped))

    def _refuse_added_one(self, spec: ModelSpec) -> None:
        """Refuse an MLX copy whose norms compute 1 + w: MLX stores 1 + w, and no stored value shows it."""
        if spec.final_norm.kind == "rms1p" and any(
            encoding_of(found) == "affine" for found in self.stored.values()
        ):
            problem = f"MLX's copies of {self.family} hold other norm weights, which are not decoded"
            raise InputRefused("E_QUANT", f"{self.label}: norms", problem)

    def layer(self, layer: LayerSpec) -> LayerSpec:
        prefix = self.blueprint.layer_prefix.format(i=layer.index)
        needs = tensors.layer(layer, self.blueprint.model.width)
        refs = tuple(self._refs(list(needs), prefix))
        moe = self._experts(layer.moe, prefix) if layer.moe else None
        return replace(layer, refs=refs, moe=moe)

    def _refs(self, needs: list[Need], prefix: str) -> Iterator[TensorRef]:
        shapes = dict(needs)
        inside = {role: stack for stack, roles in self.blueprint.stacks.items() for role in roles}
        for role, shape in needs:
            if role in DECAYS and self._stored_name(prefix + self.blueprint.names[role]) not in self.stored:
                continue
            base = role.removesuffix(".bias")
            if base in inside:
                yield self._stacked(role, inside[base], shapes, prefix)
            else:
                yield self.ref(role, shape, prefix)

    def _stacked(
        self, role: str, stack: str, shapes: Mapping[str, tuple[int, ...]], prefix: str
    ) -> TensorRef:
        """Return a reference to a tensor that is stored as some rows of a larger tensor."""
        base = role.removesuffix(".bias")
        part = role[len(base) :]
        together = [(other + part, shapes[other + part]) for other in self.blueprint.stacks[stack]]
        start = sum(shape[0] for other, shape in together[: [r for r, _ in together].index(role)])
        total = sum(shape[0] for _, shape in together)
        shape = shapes[role]
        stored = self._stored_name(prefix + stack + stored_suffix(role))
        name = prefix + self.blueprint.names[base] + stored_suffix(role)
        ref = TensorRef(name, kind_of(role), shape, role, stored, rows=(start, start + shape[0], 1))
        self._check(ref, (total, *shape[1:]))
        return ref

    def ref(self, role: str, shape: tuple[int, ...], prefix: str) -> TensorRef:
        base = role if role in BARE else role.removesuffix(".bias")
        canonical = prefix + self.blueprint.names[base] + stored_suffix(role)
        stored = self._stored_name(canonical)
        if stored not in self.stored and base in self.blueprint.also:
            other = self._stored_name(prefix + self.blueprint.also[base] + stored_suffix(role))
            stored = other if other in self.stored else stored
        ref = TensorRef(canonical, kind_of(role), shape, role, stored)
        found = self.stored.get(stored)
        if role in self.blueprint.entries:
            self._check(ref, (self.blueprint.entries[role], *shape))
            self.shared.add(stored)
            return replace(ref, index=0)
        if found is not None and tuple(found.shape) == (1, *shape):
            self.used.add(stored)  # some families store a vector as a matrix of one row
            return replace(ref, index=0)
        turned = role in self.blueprint.turned
        self._check(ref, shape[::-1] if turned else shape)
        return replace(ref, transpose=turned)

    def _with_stored_rows(self, spec: ModelSpec) -> ModelSpec:
        """Return the model with one id for each row of its embedding, if these are more than `vocab_size`.

        Exports pad tables, and a tokenizer that grows may leave the configuration behind. A server that takes the
        table as it is puts every row into its softmax; fewer rows than `vocab_size` are no whole model.
        """
        own, head = self._embedding_and_head_names()
        stored = self.stored.get(own) or (self.stored.get(head) if spec.tied else None)
        if stored is None or tuple(stored.shape[1:]) != (spec.width,):
            return spec
        return replace(spec, vocab=max(spec.vocab, stored.shape[0]))

    def _embedding(self, spec: ModelSpec) -> TensorRef:
        """Return a reference to the embedding; a tied checkpoint may store only the head, which then serves as both."""
        shape, (own, head) = (spec.vocab, spec.width), self._embedding_and_head_names()
        if spec.tied and own not in self.stored and head in self.stored:
            ref = TensorRef(own, kind_of("embedding"), shape, "embedding", head)
            self._check(ref, shape)
            return ref
        return self.ref("embedding", shape, "")

    def _embedding_and_head_names(self) -> tuple[str, str]:
        """Return the stored names of embedding and head."""
        names = (self._stored_name(self.blueprint.names[role]) for role in ("embedding", "head"))
        embedding, head = (f"{name}.weight" for name in names)
        return embedding, head

    def _head(self, spec: ModelSpec) -> Iterator[TensorRef]:
        for role, shape in tensors.linear("head", spec.vocab, spec.width, bias=spec.head_bias):
            yield self.ref(role, shape, "")

    def _check(self, ref: TensorRef, expected: tuple[int, ...]) -> None:
        found = self.stored.get(ref.stored)
        if found is None:
            self.missing.setdefault(ref.stored, expected)
            return
        if tuple(found.shape) != expected:
            said, step = END if ref.role in ("embedding", "head", "head.bias") else ("", "")
            problem = f"expected shape {list(expected)}, found {list(found.shape)}{said}"
            raise self._refuse(ref.stored, problem, step)
        dtypes = INTEGERS if ref.role == ROUTER_TABLE else FLOATS
        if isinstance(found, StoredTensor) and found.dtype not in dtypes:
            problem = f"stored as {found.dtype}, and no known format of quantisation accounts for it"
            raise InputRefused("E_QUANT", f"{self.label}: {ref.stored}", problem)
        self.used.add(ref.stored)

    def _experts(self, moe: MoESpec, prefix: str) -> MoESpec:
        names = self.blueprint.names
        canonical = {m: prefix + names[f"expert.{m}"] for m in MLP if moe.gated or m != "gate_proj"}
        layout = self._layout(moe, prefix, canonical)
        bound = replace(moe, layout=layout)
        whole = self._fused_shapes(bound)
        for expert in range(moe.router.experts):
            for ref in expert_refs(bound, expert):
                self._check(ref, whole.get(ref.stored, ref.shape))
        return bound

    def _layout(self, moe: MoESpec, prefix: str, canonical: Mapping[str, str]) -> ExpertLayout:
        first = "gate_up_proj" if moe.gated else "up_proj"
        together = MLP if self.blueprint.fused == "stacked" else (first, "down_proj")
        names = {m: self.blueprint.names.get(f"experts.{m}") for m in together}
        fused = {m: self._stored_name(prefix + name) for m, name in names.items() if name is not None}
        found = {m: name if name in self.stored else f"{name}.weight" for m, name in fused.items()}
        if len(found) < 2 or not any(name in self.stored for name in found.values()):
            return self._apart(canonical)
        if self.blueprint.fused == "stacked":
            return ExpertLayout("stacked", canonical, {m: found[m] for m in canonical})
        stored = {"down_proj": found["down_proj"], "down_proj.bias": f"{fused['down_proj']}_bias"}
        for matrix in canonical:
            if matrix != "down_proj":
                stored |= {matrix: found[first], f"{matrix}.bias": f"{fused[first]}_bias"}
        kind = self._orientation(moe, found[first])
        return ExpertLayout(kind, canonical, stored, self.blueprint.interleaved_rows)

    def _apart(self, canonical: Mapping[str, str]) -> ExpertLayout:
        """Return the layout of experts with one tensor per matrix: of one expert, or of all experts, as in MLX."""
        around = {m: self._stored_name(n).partition("experts.{e}.") for m, n in canonical.items()}
        together = {m: f"{before}{ALL_EXPERTS}.{m}" for m, (before, inside, _) in around.items() if inside}
        if together and all(f"{name}.weight" in self.stored for name in together.values()):
            return ExpertLayout("by_matrix", canonical, together)
        return ExpertLayout("split", canonical, {m: self._stored_name(n) for m, n in canonical.items()})

    def _orientation(self, moe: MoESpec, first: str) -> Literal["fused", "fused_transposed"]:
        shape = tuple(self.stored[first].shape) if first in self.stored else ()
        upright, transposed = (moe.w1_rows, moe.width), (moe.width, moe.w1_rows)
        found = self.stored.get(first)
        if encoding_of(found) == "mxfp4":
            return "fused"  # mxfp4 blocks run along the dimension over which a product sums
        if upright == transposed or shape[1:] not in (upright, transposed):
            return "fused_transposed" if self.blueprint.fused == "fused_transposed" else "fused"
        return "fused" if shape[1:] == upright else "fused_transposed"

    def _fused_shapes(self, moe: MoESpec) -> dict[str, tuple[int, ...]]:
        layout = moe.bound_layout
        if layout.kind == "split":
            return {}
        if layout.kind == "by_matrix":
            return self._whole_shapes(moe)
        count, rows, width, height = (
            moe.router.experts - moe.identity_experts,
            moe.w1_rows,
            moe.width,
            moe.expert_width,
        )
        if layout.kind == "stacked":
            return dict.fromkeys(layout.stored.values(), (count * height, width))
        transposed = layout.kind == "fused_transposed"
        shapes: dict[str, tuple[int, ...]] = {}
        for role, name in layout.stored.items():
            if role.endswith(".bias"):
                shapes[name] = (count, width if role == "down_proj.bias" else rows)
            elif role == "down_proj":
                shapes[name] = (count, height, width) if transposed else (count, width, height)
            else:
                shapes[name] = (count, width, rows) if transposed else (count, rows, width)
        return shapes

    @staticmethod
    def _whole_shapes(moe: MoESpec) -> dict[str, tuple[int, ...]]:
        """Return the shapes, by stored name, of tensors that hold one matrix (or bias) of all experts."""
        count = moe.router.experts - moe.identity_experts
        return {ref.stored: (count, *ref.shape) for ref in expert_refs(moe, 0)}

    def _find_prefix(self) -> str:
        embedding, norm = (self.blueprint.names[role] for role in ("embedding", "final_norm"))
        other = self.blueprint.also.get("embedding", embedding)
        for name in (embedding, other, norm):
            for prefix in PREFIXES:
                if f"{_under(prefix, name)}.weight" in self.stored:
                    return prefix
        return PREFIXES[0]

    def _stored_name(self, canonical: str) -> str:
        name = _under(self.prefix, canonical)
        if name in self.stored or canonical.startswith("model."):
            return name
        nested = (f"{part}{canonical}" for part in AROUND)
        return next((name for name in nested if name in self.stored), canonical)

    def _unused(self, spec: ModelSpec) -> tuple[list[Skipped], list[str]]:
        """Return the stored tensors that the replay skips for a known reason, and the tensors without such a reason."""
        idle = set(self._idle(spec))
        skipped: list[Skipped] = []
        unread: list[str] = []
        for name in sorted(set(self.stored) - self.used):
            why = ("idle", "an identity expert returns its input") if name in idle else self._why(name, spec)
            if why is None:
                unread.append(name)
            else:
                skipped.append(Skipped(name, reason=why[1], part=why[0]))
        skipped += [Skipped(name, OTHER_ENTRIES, "modalities") for name in sorted(self.shared)]
        return skipped, unread

    def _unaccounted(self, unread: Sequence[str]) -> InputRefused:
        """Return the refusal of a checkpoint that lacks tensors, or holds tensors that nothing reads."""
        name = next(iter(self.missing), None)
        if name is None:
            name = unread[0]
            said = (
                f"nothing in the {self.family} spec reads this tensor of shape {list(self.stored[name].shape)}, so a "
                "replay without it could be wrong"
            )
        else:
            said = f"missing tensor ({self.family} needs it with shape {list(self.missing[name])})"
        counted, step = account(name, self.missing, unread, len(self.used))
        return self._refuse(name, said + counted, step)

    def _idle(self, spec: ModelSpec) -> Iterator[str]:
        """Yield names of first matrices that a writer may store for identity experts (never a down projection)."""
        for moe in (layer.moe for layer in spec.layers if layer.moe):
            layout = moe.bound_layout
            for expert in range(moe.router.experts - moe.identity_experts, moe.router.experts):
                for matrix in layout.canonical.keys() - {"down_proj"}:
                    yield f"{layout.stored[matrix].format(e=expert)}.weight"

    def _why(self, name: str, spec: ModelSpec) -> tuple[str, str] | None:
        """Return the part of the checkpoint to which an unused tensor belongs, and why no replay needs it."""
        text = self._stored_name(self.blueprint.layer_prefix.split("{i}")[0])
        layer = re.match(re.escape(text) + r"(\d+)\.", name)
        if layer and int(layer[1]) >= len(spec.layers):
            return "mtp", f"multi-token-prediction layer beyond num_hidden_layers = {len(spec.layers)}"
        if re.search(r"(^|\.)mtp(_|\.|\b)", name):
            return "mtp", "multi-token-prediction module"
        if self.quantised and name.endswith(ACTIVATION_SCALES):
            return "activation_scales", "scale of quantised activations; a replay quantises none"
        if name.endswith("rotary_emb.inv_freq"):
            return "derived", "derived from the configuration"
        other = self.blueprint.other_modality
        if layer and other and re.fullmatch(other, name[layer.end() :]):
            return "modalities", "no token of text reaches it"
        if not layer and re.search(OTHER_PARTS, name):
            return "modalities", "not part of the text model"
        return None

    def _refuse(self, tensor: str, problem: str, next_step: str = "") -> InputRefused:
        return InputRefused("E_FAMILY", f"{self.label}: {tensor}", problem, next_step)


def encoding_of(found: Stored | None) -> str | None:
    """Return the kind of the format from which a tensor is decoded, also where it is changed then; None without it."""
    encoding = getattr(found, "encoding", None)
    return None if encoding is None else str(encoding.kind)


def _under(prefix: str, canonical: str) -> str:
    """Return the stored spelling of a canonical name for a text model stored under `prefix`."""
    return prefix + canonical.removeprefix("model.") if canonical.startswith("model.") else canonical
