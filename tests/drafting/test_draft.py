"""`atlas init --base`: the file that it writes registers as it is, audits, and says why it says what it says."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.cli import run
from moe_atlas.drafting.choices import protected, token_stride, window_tokens
from moe_atlas.drafting.documents import Given, Surveyed
from moe_atlas.loading.registry import resolve
from moe_atlas.probes import load_probes
from scripts.oracle import tiny
from tests.support import pairs
from tests.support.texts import WORDS, conversations, rows, sources, text, tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A base with tokenizer and chat template, a tune of it, texts, a folder of sources, and conversations."""
    root = tmp_path_factory.mktemp("draft")
    base = tiny.save("qwen3_moe", root / "base.ckpt", seed=5)
    tokenizer(base)
    pairs.variant(base, root / "tuned.ckpt", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    dice = random.Random(3)
    rows(root / "prose.jsonl", [{"text": text(dice, 40), "from": "x"} for _ in range(60)])
    sources(root / "src", dice)
    conversations(root / "sft.jsonl", dice)
    return root


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


INIT = ["init", "--base", "base.ckpt", "--data", "prose=prose.jsonl", "--data", "code=src/"]


def test_what_it_writes_registers_and_audits(place, capsys):
    assert run([*INIT, "--tuned", "tuned.ckpt"]) == 0
    told = capsys.readouterr().out
    assert "next: atlas register probes.yaml" in told
    assert "prose (base): 60 windows of 60 documents" in told
    assert run(["register", "probes.yaml"]) == 0
    assert "reads: PASS (the atlas was measured, not judged)" in capsys.readouterr().out
    audit = [
        "audit",
        "base.ckpt",
        "tuned.ckpt",
        "--probe",
        "probes.yaml",
        "--receipt",
        "r.json",
        "--json",
        "--quiet",
    ]
    assert run([*audit, "--threads", "1"]) == 0
    receipt = json.loads(Path("r.json").read_text())
    assert (receipt["verdict"], receipt["qualified"]) == ("pass", ["damage-only"])
    assert receipt["predicates"]["protected_atlas_rewrite"]["outcome"] == "not-judged"


def test_every_choice_follows_from_checkpoint_and_documents(place):
    assert run([*INIT, "--task", "sft.jsonl", "--margin", "0.02", "--out", "gate.yaml"]) == 0
    config = load_probes(Path("gate.yaml"))
    assert (config.tokenizer, config.special_tokens) == ("base.ckpt/tokenizer.json", "bos")
    assert config.windows.tokens == 32  # 41 tokens with <s>, and the next choice is 64
    assert config.protected_layers.word == "all"  # two layers have no middle
    prose, code, sft = config.domains
    assert (code.source, code.documents, code.role) == ("src/**/*.py", 40, "base")
    assert (sft.name, sft.rows, sft.role) == ("sft", "messages", "task")
    assert sft.success is not None
    assert sft.success.describe() == {"metric": "nll", "at_most": -0.05, "relative_to_base": True}
    assert prose.rows is None
    damage = config.policy.damage
    assert (damage.nll, damage.document_nll, damage.document_share) == (0.02, 0.2, 0.1)
    assert config.policy.stage == "damage-only"
    assert not config.policy.task_none


def test_a_pair_that_cannot_be_compared_is_refused_before_anything_is_written(place, capsys):
    other = tiny.save("mixtral", place / "other.ckpt", seed=1)
    assert run([*INIT, "--tuned", str(other)]) == 4
    assert "E_PAIR" in capsys.readouterr().err
    assert not Path("probes.yaml").exists()


def test_what_the_configurations_do_not_share_is_said_and_written(place, capsys):
    config = json.loads(Path("tuned.ckpt/config.json").read_text())
    config["rope_theta"] = 5e5
    config.get("rope_parameters", {})["rope_theta"] = 5e5
    config["eos_token_id"] = 7
    Path("tuned.ckpt/config.json").write_text(json.dumps(config))
    assert run([*INIT, "--tuned", "tuned.ckpt"]) == 0
    assert "config.json differs in eos_token_id" in capsys.readouterr().out
    assert "# config.json differs in eos_token_id" in Path("probes.yaml").read_text()


def test_without_a_tokenizer_it_does_not_guess(place, capsys):
    Path("base.ckpt/tokenizer.json").unlink()
    assert run(INIT) == 2
    told = capsys.readouterr().err
    assert "E_NO_TOKENIZER" in told
    assert "--tokenizer bytes" in told


def test_ids_that_the_model_does_not_have_are_refused(place, capsys):
    assert run([*INIT, "--tokenizer", "bytes"]) == 4
    assert "E_PROBE_TOKENS" in capsys.readouterr().err
    assert not Path("probes.yaml").exists()


def test_token_ids_need_no_tokenizer(place):
    Path("base.ckpt/tokenizer.json").unlink()
    dice = random.Random(1)
    rows(Path("ids.jsonl"), [{"tokens": [dice.randrange(48) for _ in range(40)]} for _ in range(40)])
    assert run(["init", "--base", "base.ckpt", "--data", "ids=ids.jsonl", "--tokenizer", "none"]) == 0
    assert load_probes(Path("probes.yaml")).tokenizer is None
    assert run(["register", "probes.yaml"]) == 0


def test_too_few_documents_and_shared_texts_are_said(place, capsys):
    lines = Path("prose.jsonl").read_text().splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(lines[:20]))
    assert run(["init", "--base", "base.ckpt", "--data", "few=few.jsonl"]) == 0
    assert "nothing can pass on fewer than 36" in capsys.readouterr().out
    task = [{"prompt": "ba", "completion": json.loads(line)["text"]} for line in lines[:4]]
    rows(
        Path("leak.jsonl"), [*task, *({"prompt": "bal", "completion": f"{WORDS[n]} bel"} for n in range(39))]
    )
    assert (
        run(["init", "--base", "base.ckpt", "--data", "p=prose.jsonl", "--task", "leak.jsonl", "--force"])
        == 0
    )
    assert "stand mostly in windows of other domains" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["init", "--data", "a=prose.jsonl"], 2, "--base"),
        (["init", "--base", "base.ckpt"], 2, "nothing would be guarded"),
        (["init", "--base", "base.ckpt", "--data", "prose.jsonl"], 2, "--data NAME=PATH"),
        (["init", "--base", "base.ckpt", "--data", "a=nowhere.jsonl"], 2, "E_NO_FILE"),
        (["init", "a.yaml", "--out", "b.yaml"], 2, "names another file"),
        (["init", "--base", "nowhere", "--data", "a=prose.jsonl"], 4, "E_NOT_FOUND"),
    ],
)
def test_what_cannot_be_meant_is_one_line(place, capsys, arguments, code, problem):
    assert run(arguments) == code
    told = capsys.readouterr().err
    assert problem in told
    assert told.count("\n") == 1
    assert list(Path().glob("*.yaml")) == []


def test_a_folder_outside_names_the_place_that_works(place, capsys):
    Path("below").mkdir()
    arguments = ["init", "below/p.yaml", "--base", "base.ckpt", "--data", "code=src"]
    assert run(arguments) == 4
    assert f"--out {place / 'probes.yaml'}" in capsys.readouterr().err


def surveyed(lengths, role="base", total=None):
    lengths = np.array(lengths, dtype=np.int64)
    given = Given("x", role, Path("x"))
    return Surveyed(
        given, "x", None, len(lengths) if total is None else total, lengths, role == "task", "texts"
    )


@pytest.mark.parametrize(
    ("domains", "context", "tokens"),
    [
        ([surveyed([600] * 40)], None, 512),
        ([surveyed([600] * 40)], 300, 256),
        ([surveyed([600] * 37 + [5] * 3)], None, 512),  # nine tenths hold it
        ([surveyed([600] * 35 + [5] * 5)], None, 16),
        ([surveyed([600] * 125 + [5] * 275)], None, 512),  # 120 hold it: the others are left out
        ([surveyed([600] * 40), surveyed([130] * 40)], None, 128),
        ([surveyed([600] * 40), surveyed([9] * 40, "task")], None, 512),  # a task keeps its own lengths
        ([surveyed([9] * 40)], None, 16),
    ],
)
def test_the_window_is_the_longest_that_enough_documents_hold(domains, context, tokens):
    assert window_tokens(domains, context, 0).value == tokens


def test_a_special_token_in_front_makes_room_for_a_shorter_document():
    assert window_tokens([surveyed([511] * 40)], None, 1).value == 512
    assert window_tokens([surveyed([511] * 40)], None, 0).value == 256


def test_stride_and_layers_follow_the_model(prepared):
    spec = resolve(open_checkpoint(prepared / "base.ckpt"))
    router = spec.layers[0].moe.router
    least = -(-512 * router.experts // router.top_k)
    assert [token_stride(spec, count).value for count in (least, 2 * least, 4 * least, 9 * least)] == [
        1,
        2,
        4,
        8,
    ]
    assert protected(spec).value == "all"
