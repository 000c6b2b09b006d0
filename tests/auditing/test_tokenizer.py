"""The tokenizer beside a checkpoint is held against the registered one before anything is measured."""

from __future__ import annotations

import json
import math
import random
import shutil
import string

import pytest
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from moe_atlas.auditing.opening.tokenizer_check import check_tokenizer
from moe_atlas.checkpoint.index import open_checkpoint
from moe_atlas.cli import run
from moe_atlas.derivation.derive import derive
from moe_atlas.errors import InputRefused
from moe_atlas.probes.registration import load_registered, register
from scripts.oracle import tiny
from tests.support import pairs

LETTERS = string.ascii_lowercase + string.ascii_uppercase[:20]
LIGHT = pairs.jitter(0.001, lambda name: "norm" not in name)


def tokenizer(order=None, *, lower=False, extra=()):
    """Each letter is a token; `order` numbers them."""
    order = order or range(len(LETTERS))
    made = Tokenizer(models.WordLevel(dict(zip(LETTERS, order, strict=True)), unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.add_special_tokens(list(extra))
    return made.to_str(pretty=True)


PERMUTED = random.Random(4).sample(range(len(LETTERS)), len(LETTERS))


def probe(folder, kind="tokenizer.json", allow=(), letters=LETTERS):
    generator = random.Random(0)
    folder.mkdir(parents=True)
    rows = [{"text": "".join(generator.choices(letters, k=24))} for _ in range(40)]
    (folder / "prose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tokenizer.json").write_text(tokenizer())
    config = {
        "schema": "atlas/probes/v1",
        "name": "letters",
        "windows": {"tokens": 16, "per_document": 1, "seed": 7},
        "tokenizer": kind,
        "protected_layers": "all",
        "domains": [{"name": "prose", "role": "base", "source": "prose.jsonl", "documents": 40}],
        "policy": pairs.POLICY | {"allow": list(allow)},
    }
    (folder / "probes.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    register(folder / "probes.yaml")
    return folder / "probes.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    base = tiny.save("qwen3_moe", root / "base", seed=3)
    pairs.variant(base, root / "tuned", LIGHT)
    probe(root / "probe")
    return root


@pytest.fixture
def held(root, tmp_path):
    def call(content, probes=None, *, tuned=True):
        folder = shutil.copytree(root / "base", tmp_path / "checkpoint")
        if content is not None:
            (folder / "tokenizer.json").write_text(content)
        registered = load_registered(probes or root / "probe/probes.yaml")
        return check_tokenizer(registered, open_checkpoint(folder), tuned=tuned)

    return call


def test_the_registered_file_is_known_by_its_bytes(held):
    assert held(tokenizer()).result == "same-file"


def test_another_file_that_gives_the_same_ids_is_the_same(held):
    changed = json.loads(tokenizer(extra=["<|im_start|>"]))
    changed["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    found = held(json.dumps(changed))
    assert (found.result, found.reason) == ("same-ids", None)


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize(
    ("content", "mention"),
    [
        (tokenizer(PERMUTED), "40 of 40 windows"),
        (tokenizer(lower=True), "of 40 windows (domain 'prose', document '1', token"),
        (tokenizer([1, 0, *range(2, 46)]), "registered 0, "),
        ("{}", "is not a tokenizer.json"),
    ],
)
def test_a_tokenizer_that_numbers_the_text_otherwise_is_refused(held, content, mention, tuned):
    with pytest.raises(InputRefused, match="E_PROBE_TOKENIZER") as refused:
        held(content, tuned=tuned)
    assert mention in str(refused.value)
    assert ("allow: [tokenizer]" in str(refused.value)) is tuned


def test_a_link_that_leads_elsewhere_cannot_be_compared(root, tmp_path):
    folder = shutil.copytree(root / "base", tmp_path / "checkpoint")
    (folder / "tokenizer.json").symlink_to(root / "probe/tokenizer.json")
    with pytest.raises(InputRefused, match="E_PROBE_TOKENIZER"):
        check_tokenizer(load_registered(root / "probe/probes.yaml"), open_checkpoint(folder), tuned=True)


def test_a_policy_may_allow_it_for_the_tuned_checkpoint_alone(held, tmp_path, root):
    allowing = probe(tmp_path / "allowing", allow=["tokenizer"])
    assert held(tokenizer(PERMUTED), allowing).result == "other-ids"
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(InputRefused, match="E_PROBE_TOKENIZER"):
        held(tokenizer(PERMUTED), allowing, tuned=False)


@pytest.mark.parametrize("content", [None, tokenizer(PERMUTED)])
def test_bytes_have_no_tokenizer_to_be_held_against(held, tmp_path, content):
    digits = probe(tmp_path / "bytes", kind="bytes", letters="\t\n !\"#$%&'()*+,-./")
    found = held(content, digits)
    assert (found.result, found.sha256) == ("not-compared", None)


def test_token_ids_are_compared_with_nothing(held, tmp_path):
    folder = tmp_path / "ids"
    path = pairs.probe(folder)
    (folder / "tokenizer.json").write_text(tokenizer())
    path.write_text(path.read_text() + "tokenizer: tokenizer.json\n")
    register(path, force=True)
    found = held(tokenizer(PERMUTED), path)
    assert (found.result, found.reason) == ("not-compared", "every source of the probe holds token ids")


def test_an_audit_is_refused_before_it_measures(root, tmp_path, capsys):
    tuned = shutil.copytree(root / "tuned", tmp_path / "tuned")
    (tuned / "tokenizer.json").write_text(tokenizer(PERMUTED))
    command = ["audit", str(root / "base"), str(tuned), "--probe", str(root / "probe/probes.yaml")]
    assert run([*command, "--receipt", str(tmp_path / "r.json")]) == 4
    assert "tuned/tokenizer.json" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
    assert run(["baseline", str(tuned), *command[3:], "--receipt", str(tmp_path / "b.json")]) == 4


def test_what_was_not_compared_or_allowed_is_a_warning(root, tmp_path):
    tuned = shutil.copytree(root / "tuned", tmp_path / "tuned")
    (tuned / "tokenizer.json").write_text(tokenizer(PERMUTED))
    probes = probe(tmp_path / "allowing", allow=["tokenizer"])
    receipt = derive(*pairs.audited(root / "base", tuned, probes, dtype="float32"))
    codes = [warning["code"] for warning in receipt["warnings"]]
    assert "tokenizer-not-compared" in codes
    assert "tokenizer-differs" in codes


def test_a_loss_above_that_of_guessing_is_a_warning(root):
    facts, arrays = pairs.audited(root / "base", root / "tuned", root / "probe/probes.yaml", dtype="float32")
    for side, level in (("base", math.log(48) + 0.001), ("tuned", math.log(48) - 0.001)):
        arrays[f"output.nll_{side}"][:] = level
    receipt = derive(facts, arrays)
    said = [w["message"] for w in receipt["warnings"] if w["code"] == "worse-than-guessing"]
    assert len(said) == 1
    assert said[0].startswith("the base checkpoint loses more than guessing would, ln(48) = 3.871 nats")
    assert said[0].endswith(": prose 3.872")
