"""A whole audit on conversations: the loss is on what the model wrote, and the receipt says how it was rendered."""

from __future__ import annotations

import json
import random
import string

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from moe_atlas.cli import run
from scripts.oracle import tiny
from tests.support import pairs

LETTERS = string.ascii_lowercase + string.ascii_uppercase[:20]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'A' + m.content }}{% else %}{{ 'B' }}"
    "{% generation %}{{ m.content + 'C' }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    base = tiny.save("qwen3_moe", folder / "base", seed=3)
    pairs.variant(base, folder / "tuned", pairs.jitter(0.001, lambda name: "norm" not in name))
    made = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    (folder / "tokenizer.json").write_text(made.to_str())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    draws = random.Random(0)
    rows = []
    for n in range(43):
        asked, said = (
            "".join(draws.choices(string.ascii_lowercase, k=12 if n < 40 else 2)) for _ in range(2)
        )
        rows.append(
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        )
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "schema": "atlas/probes/v1",
        "name": "chat",
        "windows": {"tokens": 16, "per_document": 1, "seed": 7},
        "tokenizer": "tokenizer.json",
        "protected_layers": "all",
        "domains": [{"name": "chat", "role": "base", "source": "chat.jsonl", "shorter": "skip"}],
        "policy": pairs.POLICY,
    }
    (folder / "probes.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_an_audit_on_conversations_verifies_against_its_probe_file(folder, capsys):
    probe, receipt = str(folder / "probes.yaml"), folder / "receipt.json"
    assert run(["register", probe, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["domains"][0]["documents"], facts["domains"][0]["left_out"]) == (40, 3)
    code = run(
        ["audit", str(folder / "base"), str(folder / "tuned"), "--probe", probe, "--receipt", str(receipt)]
    )
    written = json.loads(receipt.read_text())
    assert written["probe"]["chat_template"]["file"] == "chat_template.jinja"
    assert written["probe"]["left_out"] == [{"domain": "chat", "left_out": 3, "taken": 40}]
    assert "documents-left-out" in [warning["code"] for warning in written["warnings"]]
    assert run(["verify", str(receipt), "--probe", probe]) == code
    (folder / "chat_template.jinja").write_text(TEMPLATE + "{# edited #}")
    capsys.readouterr()
    assert (
        run(["audit", str(folder / "base"), str(folder / "tuned"), "--probe", probe, "--receipt", "no.json"])
        == 4
    )
    assert "chat_template" in capsys.readouterr().err
