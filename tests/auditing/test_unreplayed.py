"""What no probe token passes (prediction layers, vision, scales of activations) is compared, said and gated."""

from __future__ import annotations

import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.auditing.layer.side import Side
from moe_atlas.auditing.processes.group import Group
from moe_atlas.auditing.unreplayed import compare_unreplayed, nothing_differs
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.derivation.derive import derive
from moe_atlas.errors import InputRefused
from moe_atlas.loading.registry import resolve
from moe_atlas.weights.ledger import WeightsLedger
from scripts.oracle import tiny
from tests.checkpoint.test_quantised import fp8_model
from tests.support import pairs, quantise

MTP = "model.layers.3."
PROJECTION = f"{MTP}eh_proj.weight"
STACK = "mtp.experts.down_proj"
GAIN = f"{MTP}enorm.weight"
TOWER = "model.visual.blocks.0.attn.qkv.weight"
SCALE = "model.layers.1.mlp.experts.{e}.up_proj.input_scale"
LIGHT = pairs.jitter(0.001, lambda name: "norm" not in name)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of three layers with a prediction layer, a stack of predicting experts and a vision tower."""
    root = tmp_path_factory.mktemp("unreplayed")
    extra = {
        PROJECTION: random(32, 64),
        GAIN: 1 + 0.1 * random(32, seed=1),
        STACK: random(32, 8, 12, seed=2),
        TOWER: random(24, 8, seed=3),
        "model.visual.position_ids": torch.arange(6),
    }
    return pairs.variant(tiny.save("deepseek_v3", root / "plain", seed=3), root / "base", lambda t: t | extra)


def side(name, folder):
    checkpoint = open_checkpoint(folder)
    return Side(name, checkpoint, resolve(checkpoint), None, Reader(checkpoint))


def rows(base, tuned):
    return {
        row["part"]: row
        for row in compare_unreplayed([side("base", base), side("tuned", tuned)], WeightsLedger(), Group())
    }


def one(tensors, name, change):
    tensors[name] = change(tensors[name].clone())


def put(index, value):
    def change(tensor):
        tensor[index] = value
        return tensor

    return change


DAMAGE = {
    "a projection zeroed": (PROJECTION, torch.zeros_like, "zeroed"),
    "one expert of a stack zeroed": (STACK, put(7, 0.0), "zeroed"),
    "one expert of a stack replaced": (STACK, put(31, random(8, 12, seed=9)), "replaced"),
    "one row zeroed": (PROJECTION, put(5, 0.0), "zeroed"),
    "noise of the same size": (PROJECTION, lambda t: random(*t.shape, seed=8), "replaced"),
    "next to nothing": (PROJECTION, lambda t: t * 1e-3, "replaced"),
    "one value beyond all others": (PROJECTION, put((3, 3), 1e30), "replaced"),
    "the other sign": (PROJECTION, torch.neg, "replaced"),
    "a gain without bounds": (GAIN, lambda t: t * 1e30, "replaced"),
    "a NaN": (PROJECTION, put((0, 0), float("nan")), "nonfinite"),
    "another shape": (PROJECTION, lambda t: t[:, :-1].contiguous(), "reshaped"),
    "another shape with a NaN": (PROJECTION, lambda t: t[:, :-1] * float("nan"), "nonfinite"),
    "a tune": (PROJECTION, lambda t: t + 0.05 * random(*t.shape, seed=7), "changed"),
    "one value": (PROJECTION, put((0, 0), 0.0), "changed"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_every_kind_of_damage_is_found(base, tmp_path, case):
    name, change, finding = DAMAGE[case]
    tuned = pairs.variant(base, tmp_path / "tuned", lambda t: one(t, name, change))
    row = rows(base, tuned)["mtp"]
    assert row["tensors"] == {"base": 3, "tuned": 3}
    assert (row["identical"], row[finding]) == (2, 1)
    assert row["named"] == ([] if finding == "changed" else [{"tensor": name, "is": finding}])
    assert not nothing_differs([row])


def test_what_one_checkpoint_lacks_is_counted_by_part(base, tmp_path):
    kept = pairs.variant(base, tmp_path / "kept", lambda t: {k: v for k, v in t.items() if "visual" not in k})
    found = rows(base, kept)
    assert (found["modalities"]["missing"], found["modalities"]["tensors"]) == (2, {"base": 2, "tuned": 0})
    assert found["mtp"]["identical"] == 3
    back = rows(kept, base)["modalities"]
    assert (back["added"], back["missing"]) == (2, 0)
    poisoned = pairs.variant(base, tmp_path / "nan", lambda t: one(t, TOWER, put((0, 0), float("inf"))))
    alone = rows(kept, poisoned)["modalities"]
    assert (alone["added"], alone["nonfinite"]) == (1, 1)


def test_equal_tensors_are_identical_however_they_are_read(base, monkeypatch):
    whole = rows(base, base)
    assert nothing_differs(list(whole.values()))
    monkeypatch.setattr("moe_atlas.auditing.unreplayed.ELEMENTS", 40)
    assert rows(base, base) == whole


def test_damage_is_found_in_whatever_pieces_tensors_are_read(base, tmp_path, monkeypatch):
    tuned = pairs.variant(base, tmp_path / "tuned", lambda t: one(t, STACK, put(31, 0.0)))
    monkeypatch.setattr("moe_atlas.auditing.unreplayed.ELEMENTS", 40)
    assert rows(base, tuned)["mtp"]["zeroed"] == 1


def test_a_base_that_is_not_finite_there_is_refused(base, tmp_path):
    broken = pairs.variant(base, tmp_path / "nan", lambda t: one(t, TOWER, put((0, 0), float("nan"))))
    with pytest.raises(InputRefused, match="E_NONFINITE"):
        rows(broken, broken)


@pytest.mark.parametrize(
    ("factor", "finding"),
    [(1e-12, "replaced"), (0.1, "replaced"), (9.0, "replaced"), (3.0, "changed"), (0.0, "zeroed")],
)
def test_scales_of_activations_may_move_as_calibrations_do(tmp_path, factor, finding):
    """A scale of 1e-12 sends every activation to the end of the format; no replay quantises them."""
    names = [SCALE.format(e=expert) for expert in range(8)]
    stored = fp8_model(tmp_path / "stored")
    base = pairs.variant(
        stored, tmp_path / "base", lambda t: t | {name: torch.tensor(0.02) for name in names}
    )
    tuned = pairs.variant(
        stored, tmp_path / "tuned", lambda t: t | {name: torch.tensor(0.02 * factor) for name in names}
    )
    row = rows(base, tuned)["activation_scales"]
    assert row[finding] == row["tensors"]["tuned"] == 8


def test_a_quantised_stack_is_compared_decoded(tmp_path):
    def encode(name, tensor):
        values, scales = zip(*(quantise.fp8_blocks(part, 8) for part in tensor), strict=True)
        return (
            {name: torch.stack(values), f"{name}_scale_inv": torch.stack(scales)} if name == STACK else None
        )

    plain = tiny.save("deepseek_v3", tmp_path / "plain")
    settings = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    folders = []
    for name, change in (("base", lambda t: t), ("tuned", put(5, random(8, 16, seed=5)))):
        extra = change(random(6, 8, 16, seed=4))
        folder = pairs.variant(plain, tmp_path / name, lambda t, extra=extra: t | {STACK: extra})
        folders.append(quantise.rewrite(folder, lambda n, t: encode(n, t) if n == STACK else None, settings))
    assert rows(*folders)["mtp"]["replaced"] == 1
    assert nothing_differs(list(rows(folders[0], folders[0]).values()))


@pytest.fixture(scope="module")
def judge(base, tmp_path_factory):
    """Audit the base against a light tune of it that was changed further; optionally with something allowed."""
    root = tmp_path_factory.mktemp("judged")
    light = pairs.variant(base, root / "light", lambda t: LIGHT(t))
    probes = {
        allow: pairs.probe(root / f"probe-{len(allow)}", policy=pairs.POLICY | {"allow": list(allow)})
        for allow in ((), ("mtp",))
    }

    def call(change, allow=()):
        tuned = pairs.variant(light, root / "tuned", change)
        options = AuditOptions(dtype="float32")
        made = audit(base, tuned, probes[allow], receipt=root / "receipt.json", force=True, options=options)
        atlas = made.body["predicates"]["protected_atlas_rewrite"]
        return made, {
            line["part"]: line["result"] for line in atlas["evidence"] if line["gate"] == "unreplayed"
        }

    return call


def dropped(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith((MTP, "mtp."))}


def zeroed(tensors):
    one(tensors, PROJECTION, torch.zeros_like)


def poisoned(tensors):
    one(tensors, PROJECTION, put((0, 0), float("nan")))


@pytest.mark.parametrize(
    ("change", "allow", "result", "verdict"),
    [
        (lambda t: None, (), "pass", "pass"),
        (dropped, (), "undetermined", "inconclusive"),
        (dropped, ("mtp",), "not-gated", "pass"),
        (zeroed, (), "fail", "fail"),
        (zeroed, ("mtp",), "not-gated", "pass"),
        (poisoned, ("mtp",), "fail", "fail"),
    ],
)
def test_a_lost_part_ends_as_the_policy_says(judge, change, allow, result, verdict):
    made, gates = judge(change, allow)
    assert gates == {"mtp": result, "modalities": "pass"}
    assert made.verdict == verdict
    assert made.body["identity"]["identical_checkpoints"] is False
    said = [w["message"] for w in made.body["warnings"] if w["code"] == "unreplayed"]
    assert len(said) == (result != "pass")
    steps = [step["first"] for step in made.body["next_steps"] if "no probe token" in step["pattern"]]
    assert len(steps) == (result in ("fail", "undetermined"))


def test_a_part_of_one_checkpoint_alone_never_counts_as_identical(base, tmp_path):
    tuned = pairs.variant(base, tmp_path / "tuned", dropped)
    facts, arrays = pairs.audited(base, tuned, pairs.probe(tmp_path / "probe"), dtype="float32")
    assert facts["identity"]["identical_checkpoints"] is False
    assert facts["identity"]["identical_replayed"] is True
    for allow, verdict in (
        ([], "inconclusive"),
        (["mtp"], "inconclusive"),
        (["identical"], "inconclusive"),
        (["identical", "mtp"], "pass"),
    ):
        facts["probe"]["policy"]["allow"] = allow
        receipt = derive(facts, arrays)
        assert receipt["verdict"] == verdict, allow
        increase = receipt["domains"][0]["nll_increase"]
        assert (increase["estimate"], increase["exact"]) == (0.0, True)
