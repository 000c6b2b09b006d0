"""Generate what `atlas families` and docs/families.md say: `python -m scripts.families [--check]`.

Everything is read off the specs that the registry makes of the test suite's tiny checkpoints, so that the table cannot
claim what is not run. With --check nothing is written, and the exit code says whether anything would change.
"""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.loading.registry import FAMILIES, resolve
from moe_atlas.models.mixers import (
    DeltaNet,
    GroupedQuery,
    KimiDelta,
    Latent,
    Lightning,
    Mamba1,
    Mamba2,
    Mixer,
    SharedKeyValue,
    ShortConv,
)
from moe_atlas.models.spec import LayerSpec, ModelSpec, MoESpec
from scripts import inert_keys, released
from scripts.oracle import first_moe, tiny

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "src/moe_atlas/families/table.json"
PAGE = ROOT / "docs/families.md"
MIXERS = {
    DeltaNet: "gated delta rule",
    Lightning: "lightning attention",
    KimiDelta: "delta rule by channel",
    Mamba1: "Mamba-1",
    Mamba2: "Mamba-2",
    ShortConv: "short convolution",
    SharedKeyValue: "keys that are values, compressed, window",
}
BY_READING = "no class: read off remote code;"
RENAMED, REWRITTEN = "equals glm4_moe on renamed tensors", "equals a float64 rewrite to 1e-5"
SAME_AS = {
    "bailing_moe": ("glm4_moe", f"{BY_READING} 2.0 {RENAMED}, 1.5 {REWRITTEN}"),
    "bailing_moe_v2": ("glm4_moe", f"{BY_READING} {RENAMED}"),
    "deepseek": ("deepseek", f"{BY_READING} {REWRITTEN}"),
    "ernie4_5_vl_moe_text": (
        "ernie4_5_moe",
        "reads as ernie4_5_moe; the text of a whole model, its vision experts compared unreplayed",
    ),
    "glm4v_moe_text": ("glm4_moe", "reads as glm4_moe, biases by default, no q/k norms"),
    "kimi_k2": ("deepseek_v3", "reads as deepseek_v3"),
    "qwen3_omni_moe_text": (
        "qwen3_moe",
        "reads as qwen3_moe; the thinker of a whole model, its talker compared unreplayed",
    ),
    "qwen3_vl_moe_text": ("qwen3_moe", "reads as qwen3_moe, experts fused and transposed"),
}
"""Names without a model of their own in the reference, and the family that stands for them."""
ORACLE = "transformers 5.23.0"
FORMATS = json.loads((ROOT / "scripts/stored_formats.json").read_text("utf-8"))
"""The stored formats that are read, those that are refused, and what the page says of both."""


def main(arguments: list[str]) -> int:
    table = {"oracle": ORACLE, "families": rows(), "formats": FORMATS["read"]}
    wanted = {TABLE: json.dumps(table, indent=1) + "\n", PAGE: page(table)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{'stale' if '--check' in arguments else 'written'}: {path.relative_to(ROOT)}")
        if "--check" not in arguments:
            path.write_text(wanted[path], encoding="utf-8")
    return int(bool(stale) and "--check" in arguments)


def rows() -> list[dict[str, str]]:
    """One row for each model_type of the registry."""
    with tempfile.TemporaryDirectory() as folder:
        saved = {case: tiny.save(case, Path(folder, case)) for case in tiny.CASES}
        saved |= {kind: first_moe.save(kind, Path(folder, kind)) for kind in first_moe.CONFIGS}
        specs = {case: resolve(open_checkpoint(path)) for case, path in saved.items()}
    return [row(name, specs) for name in sorted(FAMILIES)]


def row(name: str, specs: dict[str, ModelSpec]) -> dict[str, str]:
    stand_in, remark = SAME_AS.get(name, (name, ""))
    kinds = {case: tiny.CASES[case][0] if case in tiny.CASES else case for case in specs}
    own = {case: model for case, model in specs.items() if kinds[case] in (stand_in, name)}
    layers = [layer for model in own.values() for layer in model.layers]
    moe = [layer.moe for layer in layers if layer.moe]
    return {
        "model_type": name,
        "attention": "; ".join(unique(mixer(layer.mixer) for layer in layers if layer.mixer)),
        "router": "; ".join(unique(router(one) for one in moe)),
        "experts": "; ".join(unique(experts(layer) for layer in layers if layer.moe)),
        "tested": remark or tested(own),
    }


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def tested(own: dict[str, Any]) -> str:
    exact = [case for case in own if case not in tiny.INEXACT]
    variants = f"{len(own)} variants" if len(own) > 1 else "1 variant"
    return f"{variants}, float32 to 1e-4" + (", bfloat16 bit for bit" if exact else "")


def mixer(m: Mixer) -> str:
    """A mixer in a few words."""
    if isinstance(m, GroupedQuery):
        parts = ["multi-head" if m.heads == m.kv_heads else "grouped-query"]
        parts += [{"head": "q/k norm", "full": "q/k norm", "head_after_rope": "q/k norm after rotation",
                   "l2_after_rope": "q/k norm after rotation"}[m.qk_norm]] if m.qk_norm else []  # fmt: skip
        parts += ["window"] if m.window else []
        parts += ["chunks"] if m.chunk else []
        parts += ["sinks"] if m.sinks else []
        parts += ["output gate"] if m.output_gate else []
        parts += ["values are keys"] if m.keys_as_values else []
        parts += [] if m.rope else ["no positions"]
        return ", ".join(parts)
    if isinstance(m, Latent):
        return "latent" + (", indexed" if m.indexer else "") + ("" if m.rope else ", no positions")
    return MIXERS[type(m)]


def router(moe: MoESpec) -> str:
    """A router in a few words: what top-k is taken on, and what the combine weights are."""
    r = moe.router
    score = r.score if r.dispatch == "scores" else "logits"
    parts = [
        "a table by token id" if r.table is not None else score + (" + bias" if r.selection_bias else "")
    ]
    parts += ["linear bias"] if r.linear_bias else []
    parts += ["gain of its own"] if r.own_gain is not None else []
    parts += [f"groups by {r.group_score.replace('_', ' ')}"] if r.kept_groups < r.groups else []
    rule = r.score if r.combine == "scores" else r.combine.replace("_", " ")
    parts.append(f"weights {rule}{', renormalised' if r.renormalise else ''}")
    parts += ["times a factor by expert"] if r.expert_scale else []
    return ", ".join(parts)


def experts(layer: LayerSpec) -> str:
    """A block in a few words."""
    moe = layer.moe
    assert moe is not None
    kind = moe.layout.kind.replace("_", " ") if moe.layout else "split"
    parts = [f"{kind} {'gated ' if moe.gated else ''}{moe.experts.activation.replace('_', ' ')}"]
    parts += ["identity experts"] if moe.identity_experts else []
    parts += ["gated shared" if moe.shared_gate else "shared"] if moe.shared else []
    parts += ["weighted on input"] if moe.weight_on_input else []
    parts += ["a perceptron beside"] if layer.own_norms else []
    parts += ["norm behind"] if moe.post_norm else []
    parts += [] if moe.pre_norm else ["no norm in front"]
    return ", ".join(parts)


def page(table: dict[str, Any]) -> str:
    """docs/families.md."""
    lines = [
        "# Families and formats",
        "",
        "<!-- generated by `python -m scripts.families`; do not edit -->",
        "",
        "Every family is replayed from `config.json` and the stored tensors alone. It is compared with",
        f"{ORACLE} on tiny checkpoints with every parameter randomised: logits, routed sets and combine",
        "weights, in float32 and in bfloat16 with eager attention and eager experts (`make parity` prints the",
        "differences). Text parts of multimodal checkpoints are found by their prefix; vision, audio and",
        "multi-token-prediction tensors are named as skipped. What is not listed is refused, and the message says",
        "what a spec would need.",
        "",
        "| `model_type` | attention | router: score, weights | experts | tested |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{r['model_type']}` | {r['attention']} | {r['router']} | {r['experts']} | {r['tested']} |"
        for r in table["families"]
    ]
    lines += [
        "",
        "## Formats",
        "",
        *wrapped(FORMATS["decoded"]),
        "",
        "| format | tensors |",
        "|---|---|",
    ]
    lines += [f"| {r['format']} | {r['tensors']} |" for r in FORMATS["read"]]
    lines += ["", *wrapped(FORMATS["settings"]), "", "Refused with `E_QUANT` and what is missing:", ""]
    lines += ["| what | why |", "|---|---|"]
    lines += [f"| {r['format']} | {r['reason']} |" for r in FORMATS["refused"]]
    return "\n".join([*lines, *released.page(ORACLE), *inert_keys.page()]) + "\n"


def wrapped(text: str) -> list[str]:
    """Lines of a paragraph."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
