"""The yardstick: an audit of the base against its 4-bit copy, whatever the layout, from measurement or cache."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from moe_atlas.api import AuditOptions, audit
from moe_atlas.auditing import run
from moe_atlas.auditing.copies import cache
from moe_atlas.auditing.copies.four_bit import FourBitCopy, rounded
from moe_atlas.auditing.resume import StateFile, state_paths
from moe_atlas.auditing.run import measure
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.checkpoint.reader import Reader
from moe_atlas.cli import run as atlas
from moe_atlas.loading.load import load_all
from moe_atlas.loading.registry import resolve
from moe_atlas.models.expert_refs import expert_refs
from scripts.oracle import tiny
from tests.auditing.ranks_worker import measured
from tests.auditing.test_verdicts import fuse
from tests.checkpoint.test_quantised import fp8_model
from tests.support import pairs, processes

COPY = FourBitCopy()
CHANNELS = ("coordinate_drift_z", "boundary_drift", "transition_drift", "content_drift", "expert_content",
            "overlap_drop", "dead_share_rise", "entropy_drop", "load_cv_rise")  # fmt: skip
YARDSTICK = AuditOptions(yardstick=True, dtype="float32")


def plainly(values: np.ndarray, group: int = 32) -> np.ndarray:
    """The rounding, row by row and group by group in float64."""
    rows = values.astype(np.float64).reshape(-1, values.shape[-1])
    out = np.zeros_like(rows)
    for r, row in enumerate(rows):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale = np.abs(part).max() / 7
            out[r, start : start + group] = np.round(part / scale) * scale if scale else 0.0
    return out.reshape(values.shape)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "moe-atlas" / "yardsticks"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("yardstick")
    for family in ("qwen3_moe", "deepseek_v3"):
        base = tiny.save(family, root / family, seed=5)
        pairs.variant(base, root / f"{family}-tuned", pairs.jitter(3e-3, lambda name: "norm" not in name))
        pairs.variant(base, root / f"{family}-copy", written_out)
    pairs.probe(root / "probe")
    return root


def written_out(tensors: pairs.Tensors) -> None:
    """Round every floating-point tensor of a split layout as the oracle does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            copy = plainly(np.atleast_1d(tensor.double().numpy())).reshape(tuple(tensor.shape))
            tensors[name] = torch.from_numpy(copy).to(tensor.dtype)


def audited(place: Path, folder: Path, family: str = "qwen3_moe", *, resume: bool = False, **options) -> dict:
    folder.mkdir(exist_ok=True)
    return audit(
        place / family,
        place / f"{family}-tuned",
        place / "probe" / "probes.yaml",
        receipt=folder / "receipt.json",
        force=not resume,
        resume=resume,
        options=AuditOptions(**{"yardstick": True, "dtype": "float32", **options}),
    ).body


def yardstick_of(base: Path, place: Path, **options) -> dict:
    facts, _ = measure(
        base, None, place / "probe" / "probes.yaml", AuditOptions(yardstick=True, dtype="float32", **options)
    )
    return facts["yardstick"]


def decoded(stored: Path, folder: Path) -> Path:
    """A plain checkpoint of the values that a quantised one stands for."""
    source = open_checkpoint(stored)
    reader = Reader(source)
    pairs.write(folder, {name: reader.read(name) for name in source.logical}, stored)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def numbers(block: dict) -> dict:
    return {key: block[key] for key in ("copy", "layers", "domains")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 64), (3, 40), (2, 3, 33), (7,), (), (1, 1)])
def test_the_rounding_is_that_of_float64(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    wanted = torch.from_numpy(plainly(np.atleast_1d(tensor.double().numpy()))).reshape(shape).to(dtype)
    before = tensor.clone()
    with patch("moe_atlas.auditing.copies.four_bit.PIECE", 70):
        found = COPY(tensor, None)
    assert torch.equal(found, wanted)
    assert found.dtype == dtype
    assert torch.equal(tensor, before)


def test_ties_go_to_the_even_integer_and_zeros_stay():
    row = torch.tensor([[7.0, 0.5, 1.5, -2.5, -7.0, 0.0], [0.0] * 6])
    assert rounded(row, 4, 32).tolist() == [[7.0, 0.0, 2.0, -2.0, -7.0, 0.0], [0.0] * 6]


def test_a_table_of_expert_ids_is_no_weight():
    table = torch.arange(12).reshape(3, 4)
    assert COPY(table, None) is table


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_it_is_the_audit_of_a_copy_that_was_written_out(place, tmp_path, family):
    block = audited(place, tmp_path, family)["yardstick"]
    plain = audit(
        place / family,
        place / f"{family}-copy",
        place / "probe" / "probes.yaml",
        receipt=tmp_path / "written.json",
        options=AuditOptions(dtype="float32"),
    ).body
    for row, layer in zip(block["layers"], plain["layers"], strict=True):
        assert row["layer"] == layer["layer"]
        for key in CHANNELS:
            for bound in ("estimate", "low", "high"):
                assert row[key][bound] == layer["pair"][key][bound], (key, bound)
    for row, domain in zip(block["domains"], plain["domains"], strict=True):
        for key in ("nll_increase", "kl"):
            assert [row[key][b] for b in ("estimate", "low", "high")] == [
                domain[key][b] for b in ("estimate", "low", "high")
            ]
    assert max(row["content_drift"]["estimate"] for row in block["layers"]) > 0.05
    assert block["taken_from"] == "measurement"


def test_a_fused_layout_has_the_same_copy(place, tmp_path):
    fused = pairs.variant(place / "qwen3_moe", tmp_path / "fused", fuse([0, 1]))
    assert numbers(yardstick_of(fused, place)) == numbers(yardstick_of(place / "qwen3_moe", place))


def test_a_transposed_matrix_is_rounded_along_its_inputs(tmp_path):
    base = tiny.save("gpt_oss", tmp_path / "base", seed=5)
    source = open_checkpoint(base)
    spec, stored = resolve(source), pairs.read(base)
    moe = next(layer for layer in spec.layers if layer.moe)
    copies = load_all(Reader(source), expert_refs(moe.routed, 1), COPY)
    prefix = f"model.layers.{moe.index}.mlp.experts."
    gate_up = stored[f"{prefix}gate_up_proj"][1].T.double().numpy()
    assert np.array_equal(copies["gate_proj"].double().numpy(), plainly(gate_up)[::2].astype(np.float32))
    assert np.array_equal(copies["up_proj"].double().numpy(), plainly(gate_up)[1::2].astype(np.float32))
    down = stored[f"{prefix}down_proj"][1].T.double().numpy()
    assert np.array_equal(copies["down_proj"].double().numpy(), plainly(down).astype(np.float32))


def test_a_quantised_base_is_copied_as_decoded(place, tmp_path):
    stored = fp8_model(tmp_path / "stored")
    plain = decoded(stored, tmp_path / "plain")
    found = [yardstick_of(base, place) for base in (stored, plain)]
    assert numbers(found[0]) == numbers(found[1])
    assert found[0]["key"] != found[1]["key"]


def test_without_a_request_there_is_none(place, tmp_path, own_cache):
    assert audited(place, tmp_path, yardstick=False)["yardstick"] is None
    assert not own_cache.exists()


def test_the_cache_gives_the_block_that_was_measured(place, tmp_path):
    first = audited(place, tmp_path)["yardstick"]
    with patch.object(run, "derive_yardstick", side_effect=AssertionError("measured again")):
        again = audited(place, tmp_path)["yardstick"]
    assert (first.pop("taken_from"), again.pop("taken_from")) == ("measurement", "cache")
    assert first == again


@pytest.mark.parametrize("change", ["bytes", "config", "probe", "dtype"])
def test_what_changes_a_bit_misses_the_cache(place, tmp_path, change):
    base, probe, options = place / "qwen3_moe", place / "probe" / "probes.yaml", YARDSTICK
    first = measure(base, None, probe, options)[0]["yardstick"]
    if change == "bytes":
        base = pairs.variant(base, tmp_path / "other", pairs.jitter(1e-3, lambda name: "o_proj" in name))
    if change == "config":
        base = pairs.variant(base, tmp_path / "other", lambda tensors: None)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    if change == "probe":
        probe = pairs.probe(tmp_path / "other", documents=30)
    if change == "dtype":
        options = AuditOptions(yardstick=True, dtype="bfloat16")
    again = measure(base, None, probe, options)[0]["yardstick"]
    assert again["taken_from"] == "measurement"
    assert again["key"] != first["key"]
    assert numbers(again) != numbers(first)


@pytest.mark.parametrize("damage", ["cut", "other", "number", "form", "folder"])
def test_a_damaged_entry_is_measured_again_and_replaced(place, tmp_path, own_cache, damage):
    first = audited(place, tmp_path)["yardstick"]
    (entry,) = own_cache.iterdir()
    whole = entry.read_bytes()
    assert entry.name == f"{first['key']}.json"
    if damage == "cut":
        entry.write_bytes(whole[: len(whole) // 2])
    if damage == "other":  # the entry of another base under this name
        kept = json.loads(whole)
        entry.write_text(json.dumps(kept | {"key": "0" * 64}))
    if damage == "number":
        kept = json.loads(whole)
        kept["yardstick"]["layers"][0]["content_drift"]["estimate"] += 1e-9
        entry.write_text(json.dumps(kept))
    if damage == "form":
        cache.keep(first["key"], {"copy": {"bits": 4, "group": 32}})
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    again = audited(place, tmp_path)["yardstick"]
    assert again["taken_from"] == "measurement"
    assert numbers(again) == numbers(first)
    assert entry.is_dir() or entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_no_audit(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert audited(place, tmp_path)["yardstick"]["taken_from"] == "measurement"


def test_a_relative_cache_folder_is_not_followed(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache.folder() == Path.home() / ".cache" / "moe-atlas" / "yardsticks"


def test_an_interrupted_yardstick_is_resumed(place, tmp_path, own_cache):
    whole = audited(place, tmp_path / "whole")["yardstick"]
    for entry in own_cache.iterdir():
        entry.unlink()
    real, seen = StateFile.save, []

    def save(self, walk, done):
        real(self, walk, done)
        seen.append(self.path.name)
        if seen[-2:].count(".receipt.json.yardstick-resume") == 2:
            raise KeyboardInterrupt

    with patch.object(StateFile, "save", save), pytest.raises(KeyboardInterrupt):
        audited(place, tmp_path / "cut", resume=True)
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left == {path.name for path in state_paths(Path("receipt.json"))} - {".receipt.json.floor-resume"}
    seen.clear()
    with patch.object(StateFile, "save", lambda self, walk, done: seen.append((self.path.name, done))):
        again = audited(place, tmp_path / "cut", resume=True)["yardstick"]
    assert not [1 for name, done in seen if name.endswith("yardstick-resume") and done <= 2]
    assert again == whole
    assert [path.name for path in sorted((tmp_path / "cut").iterdir())] == [
        "receipt.json",
        "receipt.windows.safetensors",
    ]


def test_two_processes_measure_what_one_measures(place, tmp_path, own_cache):
    given = (str(place / "deepseek_v3"), str(place / "deepseek_v3-tuned"), str(place / "probe/probes.yaml"))
    options = {"yardstick": True, "dtype": "float32", "threads": 1}
    alone = measured(*given, options)[0]["yardstick"]
    (entry,) = own_cache.iterdir()
    entry.unlink()
    (tmp_path / "cases").write_text(json.dumps({"first": (*given, options), "again": (*given, options)}))
    worker = [str(Path(__file__).with_name("ranks_worker.py")), str(tmp_path / "cases"), str(tmp_path)]
    assert [process.code for process in processes.together([worker] * 2)] == [0, 0]
    first, again = (
        json.loads((tmp_path / f"{name}.json").read_text())["yardstick"] for name in ("first", "again")
    )
    assert first == alone
    assert again == alone | {"taken_from": "cache"}


def test_the_command_line_asks_for_it(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [
        str(place / "qwen3_moe"),
        str(place / "qwen3_moe-tuned"),
        "--probe",
        str(place / "probe/probes.yaml"),
    ]
    atlas(["audit", *given, "--yardstick", "--quiet"])
    assert json.loads(Path("receipt.json").read_text())["yardstick"]["copy"] == {"bits": 4, "group": 32}
    assert atlas(["verify", "receipt.json"]) == 0
    capsys.readouterr()
    assert atlas(["plan", *given, "--json"]) == 0
    assert "yardstick" not in json.loads(capsys.readouterr().out)
    assert atlas(["plan", *given, "--yardstick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["yardstick"]["bytes"]["total"] == 2 * found["bytes"]["base"]
    assert found["yardstick"]["flops"]["total"] == found["flops"]["total"]
