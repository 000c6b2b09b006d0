"""Every number of a receipt against the plain float64 rewrite beside this file, on random pairs of ten families."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from moe_atlas.api import AuditOptions, audit, baseline
from moe_atlas.probes.registration import load_registered, register
from scripts.oracle import tiny
from tests.oracle import definitions, model
from tests.oracle.definitions import by_domain, soft_maximum, soft_minimum
from tests.support import pairs

TIGHT = {"rel": 2e-4, "abs": 2e-6}  # the product's own float32, on values of the order of 1
LENGTH, SEED = 10, 11
MU, TAU, LAMBDA = (1.0, 0.7, 0.5), 0.4, (0.8, 0.6)
SMOOTH = {"adjacency": 3, "occupancy": 400, "handoff": 20, "refinement": 10}


@dataclass(frozen=True)
class Case:
    """A family with the evaluation that was registered."""

    family: str
    changes: tuple[tuple[str, Any], ...] = ()
    everyone: bool = False
    stride: int = 1
    quantile: float = 0.9


CASES = {
    "deepseek_v3": Case("deepseek_v3"),
    "deepseek_v3-everyone": Case("deepseek_v3", everyone=True, stride=3, quantile=0.75),
    "deepseek_v3-no-competitor": Case("deepseek_v3", (("num_experts_per_tok", 4),)),
    "qwen3_moe-every-sixth": Case("qwen3_moe", stride=6),
    "mixtral": Case("mixtral"),
    "olmoe-everyone": Case("olmoe", everyone=True),
    "ernie4_5_moe": Case("ernie4_5_moe"),
    "gpt_oss": Case("gpt_oss"),
    "flex_olmo": Case("flex_olmo"),
    "phimoe": Case("phimoe"),
    "llama4_text": Case("llama4_text", stride=3),
    "gemma4_text": Case("gemma4_text"),
}
NO_TANGENT = ("flex_olmo", "gemma4_text")
"""Families with a norm behind the experts."""


@dataclass
class Both:
    """A receipt, and what the rewrite makes of the same pair."""

    receipt: dict[str, Any]
    windows: dict[str, np.ndarray]
    folder: Path
    base: model.Reference
    tuned: model.Reference
    domains: list[int]
    scope: definitions.Scope
    probe: Any

    @property
    def layers(self) -> list[tuple[dict[str, Any], model.Layer, model.Layer]]:
        return list(zip(self.receipt["layers"], self.base.layers, self.tuned.layers, strict=True))


def write_probe(folder: Path, case: Case) -> Path:
    """Two base domains of different size with two windows a document, a canary and a task."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2)

    def rows(count: int, length: int) -> list[dict[str, Any]]:
        return [{"tokens": random.integers(0, 48, length).tolist()} for _ in range(count)]

    task = [
        {"prompt": row["tokens"][:4], "completion": row["tokens"][4:]}
        for n in (7, 9, 12)
        for row in rows(1, n)
    ]
    sources = {"prose": rows(3, 24), "code": rows(5, 24), "canary": rows(2, 24), "task": task}
    for name, content in sources.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    rewrite = pairs.POLICY["rewrite"] | {
        "refinement": {"mu": list(MU), "tau": TAU},
        "handoff": {"lambda": list(LAMBDA)},
        "smooth": SMOOTH,
    }
    success = {"metric": "nll", "at_most": 9.0}
    config = {
        "schema": "atlas/probes/v1",
        "name": "oracle",
        "windows": {"tokens": LENGTH, "per_document": 2, "seed": SEED},
        "evaluation": {
            "experts": "all" if case.everyone else "active",
            "token_stride": case.stride,
            "quantile": case.quantile,
        },
        "protected_layers": "all",
        "domains": [
            {"name": "task", "role": "task", "source": "task.jsonl", "documents": 3, "success": success},
            {"name": "prose", "role": "base", "source": "prose.jsonl", "documents": 3},
            {"name": "canary", "role": "canary", "source": "canary.jsonl", "max_nll_increase": 0.5},
            {"name": "code", "role": "base", "source": "code.jsonl", "documents": 5},
        ],
        "policy": {k: v for k, v in pairs.POLICY.items() if k != "task"}
        | {"rewrite": rewrite, "resamples": 200},
    }
    path = folder / "probes.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    register(path, force=True)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle")

    @cache
    def measure(name: str) -> Both:
        case, folder = CASES[name], root / name
        base = tiny.save(case.family, folder / "base", seed=5, **dict(case.changes))
        tuned = pairs.variant(base, folder / "tuned", pairs.jitter(0.2, lambda name: True))
        probe = write_probe(folder / "probe", case)
        options = AuditOptions(dtype="float32")
        receipt = audit(base, tuned, probe, receipt=folder / "receipt.json", options=options)
        windows = load_registered(probe).windows
        tokens = [window.tokens for window in windows]
        scope = definitions.Scope(case.everyone, case.stride, case.quantile, SMOOTH["adjacency"], SEED)
        domains = [window.domain for window in windows if window.domain in (1, 3)]
        sides = model.run(base, tokens), model.run(tuned, tokens)
        return Both(receipt.body, receipt.windows(), folder, *sides, domains, scope, windows)

    return measure


@pytest.fixture(scope="module")
def rewritten(measured):
    """Per case: the rewrite's pair, base and tuned values of every layer."""

    @cache
    def rewrite(name: str) -> list[dict[str, dict[str, Any]]]:
        both = measured(name)
        return [
            {
                "pair": definitions.pair((one, two), both.domains, both.scope),
                "base": definitions.health(one, both.domains, both.scope),
                "tuned": definitions.health(two, both.domains, both.scope),
            }
            for _, one, two in both.layers
        ]

    return rewrite


def agree(found: Any, expected: Any, what: str) -> None:
    """An interval's estimate, or a point value, against the rewrite; undefined must say why."""
    if isinstance(found, dict):
        if expected is None:
            assert found.get("estimate", found.get("value")) is None, what
            assert found["reason"], what
            return
        found = found["estimate"]
    assert found is not None, what
    assert found == pytest.approx(np.asarray(expected).tolist(), **TIGHT), what


PAIR = (
    "coordinate_drift", "coordinate_drift_z", "boundary_drift", "native_boundary_drift", "transition_drift",
    "content_drift", "smooth_boundary", "smooth_boundary_published", "smooth_content",
    "smooth_content_published", "smooth_content_coverage",
)  # fmt: skip
BUDGET = ("actual", "router_term", "content_term", "bound", "base_norm")
MEANS = (
    "set_margin", "group_margin", "overlap", "overlap_specificity", "overlap_boundary_contrast", "jump",
    "jump_idealised", "jump_relative", "jump_near_boundary", "field_norm", "smooth_overlap",
)  # fmt: skip
POINTS = (
    "cells",
    "cell_entropy",
    "expert_share",
    "dead_by_chance",
    "ties",
    "margin_undefined",
    "smooth_share",
)
OCCUPANCY = (
    "load_cv", "load_entropy", "effective_experts", "max_violation", "dead_experts", "active_experts", "min_share",
)  # fmt: skip
QUANTILES = tuple(f"{key}_{q}" for key in ("set_margin", "group_margin") for q in ("p01", "p10", "p50"))


@pytest.mark.parametrize("name", CASES)
def test_the_pair(measured, rewritten, name):
    for (layer, _, _), expected in zip(measured(name).layers, rewritten(name), strict=True):
        where, pair, found = f"{name} layer {layer['layer']}", expected["pair"], layer["pair"]
        for key in PAIR:
            agree(found[key], pair.get(key), f"{where} {key}")
        for key in BUDGET:
            agree(found["perturbation_budget"][key], pair.get(key), f"{where} budget {key}")
        ratio = pair["bound"] / pair["actual"] if "bound" in pair else None
        agree(found["perturbation_budget"]["ratio"], ratio, f"{where} ratio")
        assert found["flips"] == pair["flips"], where
        assert found["flips"]["changed"] > 0, where
        for key in ("raw_norm_drift", "raw_state_drift"):
            agree(layer["control"][key], pair[key], f"{where} {key}")
        if "overlap" in expected["base"]:
            agree(found["overlap_drop"], expected["base"]["overlap"] - expected["tuned"]["overlap"], where)
        one, two = expected["base"], expected["tuned"]
        agree(found["entropy_drop"], one["load_entropy"] - two["load_entropy"], f"{where} entropy")
        agree(found["load_cv_rise"], two["load_cv"] - one["load_cv"], f"{where} cv")
        rise = (two["dead_experts"] - one["dead_experts"]) / len(one["expert_share"])
        agree(found["dead_share_rise"], rise, f"{where} dead")


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("name", CASES)
def test_health(measured, rewritten, name, side):
    for (layer, _, _), expected in zip(measured(name).layers, rewritten(name), strict=True):
        for key in (*MEANS, *QUANTILES, *OCCUPANCY, *POINTS):
            agree(layer[side][key], expected[side].get(key), f"{name} layer {layer['layer']} {side} {key}")


@pytest.mark.parametrize("name", CASES)
def test_window_values(measured, rewritten, name):
    """Not the means alone: every window of every channel."""
    both = measured(name)
    for (layer, _, _), expected in zip(both.layers, rewritten(name), strict=True):
        prefix, table = f"layers.{layer['layer']}.pair", expected["pair"]["table"]
        keys = {f"{prefix}.{key}": key for key in PAIR}
        keys |= {f"{prefix}.perturbation_budget.{key}": key for key in BUDGET}
        for stored, key in keys.items():
            if key in table.values:
                values = list(table.window_means(key).values())
                assert both.windows[stored] == pytest.approx(values, **TIGHT), f"{name} {stored}"
            else:
                assert stored not in both.windows, f"{name}: {stored} is undefined, yet measured"


@pytest.mark.parametrize("name", CASES)
def test_every_expert_by_itself(measured, rewritten, name):
    both = measured(name)
    for (layer, _, _), expected in zip(both.layers, rewritten(name), strict=True):
        prefix = f"layers.{layer['layer']}.pair.expert_content"
        if "content_drift" in layer["undefined"]:
            assert f"{prefix}.sum" not in both.windows
            assert layer["pair"]["expert_content"]["not_applicable"] is True
            continue
        sums, counts = both.windows[f"{prefix}.sum"], both.windows[f"{prefix}.count"]
        cells = expected["pair"]["experts"]
        for window, expert in np.ndindex(*counts.shape):
            values = cells.get((window, expert), [])
            assert counts[window, expert] == len(values), f"{name} window {window} expert {expert}"
            assert sums[window, expert] == pytest.approx(sum(values), **TIGHT)
        unreached = [e for e in range(layer["experts"]) if not counts[:, e].any()]
        assert layer["pair"]["expert_coverage"]["unreached"] == unreached


@pytest.mark.parametrize("name", CASES)
def test_what_is_undefined_was_not_measured(measured, name):
    both = measured(name)
    for layer, _, _ in both.layers:
        own = [key.split(".")[3] for key in both.windows if key.startswith(f"layers.{layer['layer']}.")]
        assert own
        assert not set(own) & layer["undefined"].keys()
        assert all(layer["undefined"].values())
    assert ("content_quantisation" in layer["undefined"]) is (name in NO_TANGENT)


@pytest.mark.parametrize("name", CASES)
def test_smooth_tail(measured, rewritten, name):
    for (layer, _, _), expected in zip(measured(name).layers, rewritten(name), strict=True):
        for side in ("base", "tuned"):
            for suffix in ("", "_published"):
                share = list(expected[side]["smooth_share"])
                value = soft_minimum(share, SMOOTH["occupancy"], published=bool(suffix))
                agree(layer[side][f"smooth_tail{suffix}"], value, f"{name} {side} tail{suffix}")


def tail_of(values: dict[str, Any], suffix: str) -> float:
    return soft_minimum(list(values["smooth_share"]), SMOOTH["occupancy"], published=bool(suffix))


def loads(layer: dict[str, Any]) -> dict[str, float]:
    """Each margin's value at one layer."""
    pair, base, tuned = layer["pair"], layer["base"], layer["tuned"]
    share = tuned["min_share"] / base["min_share"]
    drift = MU[0] * pair["boundary_drift"] + MU[1] * pair["content_drift"]
    overlap = LAMBDA[0] * (tuned["overlap"] - base["overlap"]) if "overlap" in base else math.nan
    out = {
        "refinement_margin": TAU - drift - MU[2] * max(0.0, 1 - share),
        "refinement_margin_published": TAU - drift - MU[2] * (1 - share),
        "handoff_margin": overlap + LAMBDA[1] * min(0.0, share - 1),
        "handoff_margin_published": overlap + LAMBDA[1] * (share - 1),
    }
    for suffix in ("", "_published"):
        ratio = tail_of(tuned, suffix) / tail_of(base, suffix)
        smooth = MU[0] * pair[f"smooth_boundary{suffix}"] + MU[1] * pair[f"smooth_content{suffix}"]
        out[f"smooth_refinement{suffix}"] = smooth + MU[2] * (1 - ratio)
        overlap = LAMBDA[0] * (tuned["smooth_overlap"] - base["smooth_overlap"])
        out[f"smooth_handoff{suffix}"] = overlap + LAMBDA[1] * (ratio - 1)
    return out


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_TANGENT])
def test_margins(measured, rewritten, name):
    margins = measured(name).receipt["margins"]
    layers = [loads(layer) for layer in rewritten(name)]
    exact = ["refinement_margin", "handoff_margin"][: 1 if name == "llama4_text" else 2]
    for key in (*exact, *(f"{key}_published" for key in exact)):
        agree(margins[key], min(layer[key] for layer in layers), f"{name} {key}")
    for suffix in ("", "_published"):
        load = [layer[f"smooth_refinement{suffix}"] for layer in layers]
        margin = TAU - soft_maximum(load, SMOOTH["refinement"], published=bool(suffix))
        agree(margins[f"smooth_refinement_margin{suffix}"], margin, f"{name} smooth r{suffix}")
        score = [layer[f"smooth_handoff{suffix}"] for layer in layers]
        margin = soft_minimum(score, SMOOTH["handoff"], published=bool(suffix))
        agree(margins[f"smooth_handoff_margin{suffix}"], margin, f"{name} smooth h{suffix}")


@pytest.mark.parametrize("name", [*NO_TANGENT, "llama4_text"])
def test_margins_that_do_not_exist(measured, name):
    margins = measured(name).receipt["margins"]
    gone = ["handoff_margin", "handoff_margin_published"]
    gone += ["refinement_margin", "smooth_refinement_margin"] if name in NO_TANGENT else []
    for key in gone:
        agree(margins[key], None, f"{name} {key}")


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral"])
def test_handoff_against_a_registered_baseline(measured, rewritten, name):
    """The reference is another checkpoint: its overlap and occupancy take the place of the base's."""
    both = measured(name)
    folder = both.folder
    probe = folder / "probe" / "probes.yaml"
    options = AuditOptions(dtype="float32")
    baseline(folder / "tuned", probe, receipt=folder / "reference.json", force=True, options=options)
    options = AuditOptions(dtype="float32", baseline=folder / "reference.json")
    third = pairs.variant(folder / "base", folder / "third", pairs.jitter(0.1, lambda name: True, seed=4))
    margins = audit(
        folder / "base", third, probe, receipt=folder / "third.json", force=True, options=options
    ).body["margins"]
    reference = model.run(third, [window.tokens for window in both.probe])
    scores, smooth = [], []
    for layer, expected in zip(reference.layers, rewritten(name), strict=True):
        own, ref = definitions.health(layer, both.domains, both.scope), expected["tuned"]
        share = own["min_share"] / ref["min_share"]
        scores.append(LAMBDA[0] * (own["overlap"] - ref["overlap"]) + LAMBDA[1] * min(0.0, share - 1))
        overlap = LAMBDA[0] * (own["smooth_overlap"] - ref["smooth_overlap"])
        smooth.append(overlap + LAMBDA[1] * (tail_of(own, "") / tail_of(ref, "") - 1))
    agree(margins["handoff_margin"], min(scores), name)
    value = soft_minimum(smooth, SMOOTH["handoff"], published=False)
    agree(margins["smooth_handoff_margin"], value, name)


@pytest.mark.parametrize("name", CASES)
def test_output(measured, name):
    both = measured(name)
    columns: dict[str, list[float]] = {}
    for window, base, tuned in zip(both.probe, both.base.log_probs, both.tuned.log_probs, strict=True):
        at = [s for s in range(len(window.tokens) - 1) if window.scored[s]]
        target = [window.tokens[s + 1] for s in at]
        assert at
        row = {
            "nll_base": -np.mean([base[s, t] for s, t in zip(at, target, strict=True)]),
            "nll_tuned": -np.mean([tuned[s, t] for s, t in zip(at, target, strict=True)]),
            "kl": np.mean([np.exp(base[s]) @ (base[s] - tuned[s]) for s in at]),
            "top1_agreement": np.mean([base[s].argmax() == tuned[s].argmax() for s in at]),
            "token_accuracy_tuned": np.mean(
                [tuned[s].argmax() == t for s, t in zip(at, target, strict=True)]
            ),
        }
        row["exact_match_tuned"] = float(row["token_accuracy_tuned"] == 1.0)
        row["nll_increase"] = row["nll_tuned"] - row["nll_base"]
        for key, value in row.items():
            columns.setdefault(key, []).append(float(value))
    for number, domain in enumerate(both.receipt["domains"]):
        chosen = [w for w, window in enumerate(both.probe) if window.domain == number]
        assert domain["windows"] == len(chosen)
        for key, values in columns.items():
            agree(domain[key], np.mean([values[w] for w in chosen]), f"{name} {domain['name']} {key}")
        if domain["role"] == "canary":
            worst = max(columns["nll_increase"][w] for w in chosen)
            assert domain["worst_window"]["nll_increase"] == pytest.approx(worst, **TIGHT)
    prompts = [window for window in both.probe if window.domain == 0]
    assert all(not window.scored[:3].any() and window.scored[3:].all() for window in prompts)


@pytest.mark.parametrize("name", CASES)
def test_aggregates(measured, rewritten, name):
    for side in ("base", "tuned"):
        layers = [layer[side] for layer in rewritten(name)]
        for scope in ("protected", "routed"):
            found = measured(name).receipt["aggregates"][scope][side]
            agree(found["min_entropy"], min(layer["load_entropy"] for layer in layers), name)
            agree(found["mean_load_cv"], np.mean([layer["load_cv"] for layer in layers]), name)
            dead = [layer["dead_experts"] for layer in layers]
            agree(found["dead_experts"]["mean"], np.mean(dead), name)
            agree(found["dead_experts"]["max"], max(dead), name)
            agree(found["experts_active_mean"], np.mean([layer["active_experts"] for layer in layers]), name)


@pytest.mark.parametrize("name", CASES)
def test_assumptions(measured, rewritten, name):
    both = measured(name)
    for (layer, one, two), expected in zip(both.layers, rewritten(name), strict=True):
        for side, own in (("base", one), ("tuned", two)):
            found = layer["assumptions"][side]
            biased = own.router_bias is not None or own.selection_bias is not None
            assert found["rms_norm"] is (own.norm == "rms")
            assert found["bias_free_router"] is not biased
            homogeneous = not biased and own.norm == "rms"
            assert found["ray_invariant_selection"] is homogeneous or own.norm == "layer"
            rows = own.experts[0][0].shape[own.family == "gpt_oss"]  # gpt_oss: [D, 2H]
            assert found["w1_rows"] == rows * (1 if own.family == "gpt_oss" else 2)
            assert found["rank_possible"] is (found["w1_rows"] >= own.router.shape[1])
            gain = None if own.gain is None else np.abs(own.gain).max() / np.abs(own.gain).min()
            agree(found["gain_anisotropy"], gain, name)
            radial = found["radial_to_tangent"]
            if own.norm == "none":
                assert radial["value"] is None
            else:
                assert radial == pytest.approx(expected[side]["radial_to_tangent"], rel=1e-4)


@pytest.mark.parametrize(
    "name", ["deepseek_v3", "qwen3_moe-every-sixth", "mixtral", "gpt_oss", "llama4_text"]
)
def test_the_ledger(measured, name):
    both = measured(name)
    base, tuned = (load_file(both.folder / side / "model.safetensors") for side in ("base", "tuned"))
    square = {key: float(np.sum(value.astype(np.float64) ** 2)) for key, value in base.items()}
    moved = {key: float(np.sum((tuned[key].astype(np.float64) - base[key]) ** 2)) for key in base}
    distance = math.sqrt(sum(moved.values()) / sum(square.values()))
    assert both.receipt["controls"]["parameter_distance"] == pytest.approx(distance, rel=1e-6)
    rows = both.receipt["weights"]["tensors"]
    assert sum(row["elements"] for row in rows) == sum(value.size for value in base.values())
    plain = [row for row in rows if row["name"] in base]
    assert len(plain) > 5
    for row in plain:
        key = row["name"]
        assert row["relative_change"] == pytest.approx(math.sqrt(moved[key] / square[key]), rel=1e-6)
        assert row["zeros"] == {"base": int((base[key] == 0).sum()), "tuned": int((tuned[key] == 0).sum())}
        assert row["identical"] is False
    for kind, own in both.receipt["weights"]["classes"].items():
        members = [row for row in rows if row["class"] == kind]
        assert own["tensors"] == len(members) == (own["changed"] or 0), kind
        named = [row["name"] for row in members if row["name"] in base]
        if members and len(named) == len(members):
            change = math.sqrt(sum(moved[n] for n in named) / sum(square[n] for n in named))
            assert own["relative_change"] == pytest.approx(change, rel=1e-6), kind
    for layer in both.receipt["identity"]["layers"]:
        assert layer["nearest_is_same_index"] == layer["experts"]
        assert layer["assignment"] == "same-index"


@pytest.mark.parametrize("name", CASES)
def test_the_perturbation_bound_holds_on_every_token(rewritten, name):
    for layer in rewritten(name):
        cells = layer["pair"]["table"].values
        for at, actual in cells.get("actual", {}).items():
            assert actual <= cells["bound"][at] * (1 + 1e-12)


def test_flips_inside_the_noise_band(measured, tmp_path):
    """A floor from bfloat16 is wide enough to put some changes inside it, and not all."""
    both = measured("deepseek_v3")
    options = AuditOptions(dtype="float32", noise_floor="bfloat16")
    probe = both.folder / "probe" / "probes.yaml"
    sides = [both.folder / side for side in ("base", "tuned")]
    receipt = audit(*sides, probe, receipt=tmp_path / "receipt.json", options=options).body
    inside = outside = 0
    for (_, one, two), floor, layer in zip(
        both.layers, receipt["noise_floor"]["layers"], receipt["layers"], strict=True
    ):
        band = floor["delta"], floor["group_delta"]
        assert min(band) > 0
        expected = definitions.pair((one, two), both.domains, both.scope, band)["flips"]
        assert layer["pair"]["flips"] == expected
        inside, outside = inside + expected["inside"], outside + expected["outside"]
    assert inside > 0
    assert outside > 0


def test_domains_weigh_equally_however_many_documents_they_have(measured):
    both = measured("mixtral")
    values = both.windows["layers.0.pair.content_drift"]
    weighted = by_domain(both.domains, dict(enumerate(values)))
    assert abs(weighted - values.mean()) > 1e-4, "the case must tell the two apart"
    found = both.receipt["layers"][0]["pair"]["content_drift"]["estimate"]
    assert found == pytest.approx(weighted, rel=1e-12)
