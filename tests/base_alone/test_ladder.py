"""Ladders of noise: the copies against a plain rewrite, the rungs against written copies, and the command's files."""

from __future__ import annotations

import csv
import hashlib
import xml.etree.ElementTree as ET
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moe_atlas.api import AuditOptions, audit
from moe_atlas.auditing.copies.noise import OBJECTS, NoisyCopy, noisy
from moe_atlas.base_alone.base import open_base
from moe_atlas.base_alone.chart import chart, figure
from moe_atlas.base_alone.ladder import DOSES, Rung, certainly_damaged, climb
from moe_atlas.base_alone.table import NLL, Row, csv_text, summary, table
from moe_atlas.calibration.from_base import Draft, Provisional
from moe_atlas.channels import BUDGETS, GATED
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.cli import run
from moe_atlas.loading.load import load_all
from moe_atlas.loading.registry import resolve
from moe_atlas.models.expert_refs import expert_refs
from scripts.oracle import tiny
from tests.auditing.test_verdicts import fuse
from tests.support import pairs

FLOAT32 = AuditOptions(dtype="float32")
ASKED = ["calibrate", "--from-base", "base.ckpt", "--probe", "probes.yaml", "--margin", "0.05"]


def plainly(values: np.ndarray, dose: float, name: str) -> np.ndarray:
    """A tensor with its noise, in float64 and as a whole."""
    rng = np.random.default_rng(int(hashlib.sha256(name.encode("utf-8")).hexdigest(), 16))
    size = np.sqrt(np.mean(values.astype(np.float64) ** 2))
    return values + dose * size * rng.standard_normal(values.size).reshape(values.shape)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("ladder")
    tiny.save("qwen3_moe", root / "base.ckpt", seed=5)
    pairs.probe(root)
    return root


@pytest.fixture(scope="module")
def drawn(place):
    """The files of one command: with ladders, and the policy of the same command without."""
    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.chdir(place)
        here.setenv("XDG_CACHE_HOME", str(place / "cache"))
        with (place / "said").open("w") as said, redirect_stdout(said), redirect_stderr(said):
            assert run([*ASKED, "--out", "with.yaml", "--ladder", "ladder.csv"]) == 0
        assert run([*ASKED, "--out", "without.yaml"]) == 0
    return place


@pytest.fixture(scope="module")
def rows(drawn):
    with (drawn / "ladder.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 33), (7,), (), (3, 1 << 14)])
def test_the_noise_is_that_of_a_plain_rewrite(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = tensor.clone()
    found = noisy(tensor, 0.3, "a.weight")
    wanted = torch.from_numpy(np.asarray(plainly(tensor.double().numpy(), 0.3, "a.weight"))).to(dtype)
    assert torch.allclose(found, wanted, rtol=1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps)
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(tensor, before)
    assert torch.equal(noisy(tensor, 0.0, "a.weight"), tensor)
    assert not torch.equal(noisy(tensor, 0.3, "b.weight"), found)


def test_the_bits_do_not_depend_on_threads_or_strides():
    tensor = torch.randn(700, 900, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = noisy(tensor, 0.3, "a")
        torch.set_num_threads(4)
        assert torch.equal(noisy(tensor.T.contiguous().T, 0.3, "a"), alone)
    finally:
        torch.set_num_threads(threads)


def test_an_embedding_is_the_same_in_any_parts(place):
    source = open_checkpoint(place / "base.ckpt")
    ref = resolve(source).embed_refs[0]
    whole = load_all(Reader(source), [ref])[ref.role]
    copy = NoisyCopy("everything", 0.3)
    parts = [copy(whole[a:b], ref, range(a, b)) for a, b in ((0, 7), (7, 8), (8, len(whole)))]
    assert torch.equal(torch.cat(parts), copy(whole, ref))
    wanted = plainly(whole[7].double().numpy(), 0.3, f"{ref.name}[7]")
    assert np.allclose(parts[1][0].numpy(), wanted, rtol=1e-6)


NAMED = {
    "router": ("mlp.gate.",),
    "experts": ("mlp.experts.",),
    "backbone": ("self_attn.", "mlp.shared_experts.", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "gains": ("layernorm.weight", "model.norm.weight"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_only_the_object_gets_noise(tmp_path, name):
    source = open_checkpoint(tiny.save("deepseek_v3", tmp_path / "base", seed=5))
    spec = resolve(source)
    refs = [*spec.embed_refs, *spec.final_refs]
    for layer in spec.layers:
        refs += [*layer.refs, *(expert_refs(layer.routed, 1) if layer.moe else ())]
    reader, copy = Reader(source), NoisyCopy(name, 0.5)
    for ref in refs:
        (plain,), (found,) = (load_all(reader, [ref], how).values() for how in (None, copy))
        wanted = name == "everything" or any(part in ref.name for part in NAMED[name])
        if "self_attn" in ref.name and name == "gains":
            wanted = False  # the norms inside attention belong to it
        assert torch.equal(plain, found) != (wanted and bool(plain.any())), ref.name


def test_integers_are_no_weights():
    table = torch.arange(12).reshape(3, 4)
    assert NoisyCopy("everything", 1.0)(table, None) is table


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_an_expert_has_the_same_noise_in_every_layout(tmp_path, family):
    base = tiny.save(family, tmp_path / "base", seed=5)
    source, copy = open_checkpoint(base), NoisyCopy("experts", 0.4)
    if family == "qwen3_moe":
        other = open_checkpoint(pairs.variant(base, tmp_path / "fused", fuse([0, 1])))
        layer = next(layer for layer in resolve(other).layers if layer.moe)
        fused = load_all(Reader(other), expert_refs(layer.routed, 1), copy)
    layer = next(layer for layer in resolve(source).layers if layer.moe)
    refs = expert_refs(layer.routed, 1)
    plain, found = load_all(Reader(source), refs), load_all(Reader(source), refs, copy)
    for ref in refs:
        assert ref.name.startswith(
            f"model.layers.{layer.index}.mlp.experts.1.{ref.role}".removesuffix(".bias")
        )
        wanted = plainly(plain[ref.role].double().numpy(), 0.4, ref.name)
        assert np.allclose(found[ref.role].double().numpy(), wanted, rtol=1e-6, atol=1e-9)
        assert family != "qwen3_moe" or torch.equal(found[ref.role], fused[ref.role])


def rungs_of(place: Path, base: Path, doses, margin: float = 0.6):
    return climb(open_base(base, place / "probes.yaml", FLOAT32), margin, FLOAT32, doses)


def test_a_fused_layout_climbs_the_same_ladder(place, tmp_path):
    fused = pairs.variant(place / "base.ckpt", tmp_path / "fused", fuse([0, 1]))
    assert rungs_of(place, fused, (0.1,)) == rungs_of(place, place / "base.ckpt", (0.1,))


def test_dose_zero_is_exactly_zero_everywhere(place):
    rungs = rungs_of(place, place / "base.ckpt", (0.0,))
    assert [rung.object for rung in rungs] == list(OBJECTS)
    for rung in rungs:
        found = [layer[channel.key] for layer in rung.measured["layers"] for channel in GATED]
        found += [row[key] for row in rung.measured["domains"] for key in (NLL, "kl")]
        assert {number[bound] for number in found for bound in ("estimate", "low", "high")} == {0.0}


def test_a_rung_is_the_audit_of_a_copy_that_was_written_out(place, tmp_path):
    def everything(tensors: pairs.Tensors) -> None:
        for name, tensor in tensors.items():
            values = tensor.double().numpy()
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                changed = np.stack([plainly(row, 0.1, f"{name}[{n}]") for n, row in enumerate(values)])
            else:
                changed = plainly(values, 0.1, name)
            tensors[name] = torch.from_numpy(np.asarray(changed)).to(tensor.dtype)

    written = pairs.variant(place / "base.ckpt", tmp_path / "written", everything)
    probe, receipt = place / "probes.yaml", tmp_path / "receipt.json"
    plain = audit(place / "base.ckpt", written, probe, receipt=receipt, options=FLOAT32).body
    rung = rungs_of(place, place / "base.ckpt", (0.1,))[-1]
    assert rung.object == "everything"
    for row, layer in zip(rung.measured["layers"], plain["layers"], strict=True):
        for channel in GATED:
            wanted = layer["pair"][channel.key]["estimate"]
            assert row[channel.key]["estimate"] == pytest.approx(wanted, rel=1e-6, abs=1e-9), channel.key
    for row, domain in zip(rung.measured["domains"], plain["domains"], strict=True):
        assert row[NLL]["high"] == pytest.approx(domain[NLL]["high"], rel=1e-6)


MOVED = {
    "router": "boundary",
    "experts": "content",
    "backbone": "coordinate",
    "gains": "boundary",
    "everything": "content",
}


@pytest.mark.parametrize(("name", "channel"), MOVED.items())
def test_drift_rises_with_the_dose(rows, name, channel):
    found = [row for row in rows if (row["object"], row["quantity"]) == (name, channel)]
    assert [float(row["dose"]) for row in found] == list(DOSES[: len(found)])
    drifts = [float(row["estimate"]) for row in found]
    assert len(drifts) > 2
    assert all(0.0 < a < b for a, b in zip(drifts, drifts[1:], strict=False))
    assert all(float(row["low"]) <= float(row["estimate"]) <= float(row["high"]) for row in found)


def test_an_object_moves_only_what_reads_it(rows):
    still = [row for row in rows if (row["object"], row["quantity"]) == ("router", "content")]
    still += [row for row in rows if (row["object"], row["quantity"]) == ("experts", "boundary")]
    assert {float(row["estimate"]) for row in still} == {0.0}


def test_a_ladder_ends_with_the_first_certain_damage(rows):
    ends = set()
    for name in OBJECTS:
        mine = [row for row in rows if row["object"] == name]
        last = float(mine[-1]["dose"])
        damaged = {
            float(row["dose"])
            for row in mine
            if row["quantity"] == NLL and float(row["low"]) > float(row["limit"])
        }
        assert damaged == {last} or (not damaged and last == DOSES[-1])
        ends.add(bool(damaged))
    assert ends == {True, False}


def test_the_table_holds_the_drafted_limits(rows, drawn):
    policy = yaml.safe_load((drawn / "with.yaml").read_text())["policy"]
    limits = policy["rewrite"] | {NLL: policy["damage"]["nll"]}
    assert {row["quantity"] for row in rows} == {*BUDGETS, NLL}
    for row in rows:
        wanted = limits[row["quantity"]]
        assert row["limit"] == ("" if wanted is None else str(wanted))
        assert (row["domain"] in ("prose", "code")) == (row["quantity"] == NLL)
        assert (row["layer"] in ("0", "1")) == (row["quantity"] != NLL)


def test_a_row_is_the_worst_protected_layer(place):
    rung = rungs_of(place, place / "base.ckpt", (0.1,))[-1]
    draft = Draft({key: Provisional(None, "") for key in BUDGETS}, 0.1, 0.5, 0.1, 2.5)
    for protected in ([0], [1], [0, 1]):
        layers = [layer for layer in rung.measured["layers"] if layer["layer"] in protected]
        for row in table([rung], protected, draft):
            if row.quantity != NLL:
                found = {layer["layer"]: layer[BUDGETS[row.quantity].key] for layer in layers}
                assert row.estimate == max(one["estimate"] for one in found.values())
                assert (row.estimate, row.low, row.high) == tuple(
                    found[row.layer][bound] for bound in ("estimate", "low", "high")
                )


def test_the_policy_does_not_depend_on_the_ladder(drawn):
    texts = [(drawn / name).read_text().replace(name, "X") for name in ("with.yaml", "without.yaml")]
    assert texts[0] == texts[1]


def test_the_chart_draws_every_quantity_with_its_limit(drawn):
    root = ET.fromstring((drawn / "ladder.svg").read_bytes())
    said = " ".join("".join(element.itertext()) for element in root.iter())
    policy = yaml.safe_load((drawn / "with.yaml").read_text())["policy"]
    assert f"boundary (budget {policy['rewrite']['boundary']:g})" in said
    assert "transition (no budget)" in said
    assert "margin 0.05" in said
    assert "Noise is no tune" in said
    assert all(f"noise on {name}" in said for name in OBJECTS)


def row(
    name: str, dose: float, quantity: str, low: float | None, limit: float | None = 0.1, domain: str = ""
):
    estimate, high = (None, None) if low is None else (low + 0.06, low + 0.1)
    return Row(name, dose, quantity, None if domain else 1, domain, estimate, low, high, limit)


def test_only_base_domains_count_as_damaged():
    lost, kept = ({"estimate": low + 0.5, "low": low, "high": low + 1.0} for low in (9.0, 0.05))
    domains = [{"name": "sft", "role": "task", NLL: lost}, {"name": "prose", "role": "base", NLL: kept}]
    measured = {"layers": [], "domains": domains}
    assert not certainly_damaged(measured, 0.1)
    assert certainly_damaged(measured, 0.04)
    draft = Draft({}, 0.1, 0.5, 0.1, 2.5)
    assert [one.domain for one in table([Rung("router", 0.1, measured)], [], draft)] == ["prose"]


def test_curves_and_limits_are_drawn_where_they_lie():
    found = [
        row("router", 0.02, "boundary", 0.05),
        row("router", 0.04, "boundary", 0.2),
        row("router", 0.02, NLL, 0.0, 0.07, domain="prose"),
        row("router", 0.02, NLL, 0.02, 0.07, domain="code"),
    ]
    damage, boundary = figure(found).axes
    limits = [
        line.get_ydata() for plot in (damage, boundary) for line in plot.lines if line.get_linestyle() == "--"
    ]
    assert limits == [[0.07, 0.07], [0.1, 0.1]]
    curves = [plot.lines[0].get_xydata().tolist() for plot in (damage, boundary)]
    assert curves == [[[0.02, 0.08]], [[0.02, 0.11], [0.04, 0.26]]]


def test_the_summary_names_the_first_dose_over_each_limit():
    found = [
        row("router", 0.02, "boundary", 0.05),
        row("router", 0.02, NLL, 0.1, domain="prose"),
        row("router", 0.04, "boundary", 0.2),
        row("router", 0.04, "content", 0.3),
        row("router", 0.04, "transition", 0.3, None),
        row("router", 0.08, "boundary", 0.4),
        row("router", 0.08, NLL, 0.2, domain="prose"),
        row("gains", 0.02, "boundary", None),
        row("gains", 0.02, NLL, 0.0, domain="prose"),
    ]
    assert summary(found) == [
        "router: beyond your margin from dose 0.08 (prose); over a budget from dose 0.04 (boundary, content)",
        "gains: not certainly damaged up to dose 0.02; never over a budget",
    ]
    assert csv_text(found).splitlines()[0] == "object,dose,quantity,layer,domain,estimate,low,high,limit"
    assert csv_text(found).splitlines()[8] == "gains,0.02,boundary,1,,,,,0.1"
    assert chart(found) == chart(found)
    assert chart(found) != chart([replace(one, limit=one.limit and 0.3) for one in found])


def test_the_command_says_the_rung_and_what_noise_is_not(drawn):
    said = (drawn / "said").read_text()
    assert "noise on router, dose 0.02, rung 1 of at most 7: replaying layers" in said
    assert "noise on gains, dose 0.04, rung 2 of at most 7: reading the output" in said
    assert "noise is no tune" in said
    assert "  everything: beyond your margin from dose 0." in said
    assert "wrote ladder.csv and ladder.svg: " in said


@pytest.mark.parametrize("there", ["new.csv", "new.svg"])
def test_a_file_that_exists_is_refused_before_anything_is_measured(place, monkeypatch, capsys, there):
    monkeypatch.chdir(place)
    Path(there).write_text("mine")
    asked = [word.replace("base.ckpt", "nowhere.ckpt") for word in ASKED]
    assert run([*asked, "--out", "new.yaml", "--ladder", "new.csv"]) == 2
    assert "E_EXISTS" in capsys.readouterr().err
    assert Path(there).read_text() == "mine"
    assert not Path("new.yaml").exists()
    Path(there).unlink()


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ([*ASKED, "--level", "0.99"], "E_OPTIONS", "--level: does not go with --from-base"),
        ([*ASKED, "--ladder", "new.txt"], "E_OPTIONS", ".csv"),
        ([*ASKED, "--ladder", "base.ckpt/new.csv"], "E_OVER_INPUT", "base.ckpt"),
        (["calibrate", "--healthy", "a.json", "--ladder", "new.csv"], "E_OPTIONS", "--ladder: goes with"),
        (["calibrate", "--healthy", "a.json", "--device", "cuda"], "E_OPTIONS", "--device: goes with"),
        (["calibrate", "--healthy", "a.json", "--threads", "1"], "E_OPTIONS", "--threads: goes with"),
    ],
)
def test_what_does_not_go_together_is_refused(place, monkeypatch, capsys, given, code, said):
    monkeypatch.chdir(place)
    assert run([*given, "--out", "new.yaml"]) == 2
    refused = capsys.readouterr().err
    assert code in refused
    assert said in refused
    assert not Path("new.yaml").exists()


def test_policy_and_table_are_two_files(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run([*ASKED, "--out", "new.svg", "--ladder", "new.csv"]) == 2
    assert "E_OVER_INPUT" in capsys.readouterr().err
