"""Released models, read as released and as transformers saves them again: `python -m scripts.released [MODEL …]`.

`released_models.jsonl` holds facts: one model a line, with the keys and values that its config.json carries beyond the
defaults of its class, sizes shrunk. Of each a tiny checkpoint with random weights is built by transformers and stored
twice, under the released configuration and under the one that transformers writes. The mean NLL of both is compared
with that of the class, and `released_measured.json` and docs/families.md are written anew.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from moe_atlas.errors import InputRefused
from moe_atlas.replay.model import Replay
from scripts.oracle import tiny

FOLDER = Path(__file__).parent
FACTS, MEASURED = FOLDER / "released_models.jsonl", FOLDER / "released_measured.json"
STAND_IN = {"kimi_k2": "deepseek_v3"}
"""The class of an architecture without one of its own."""
WRAPPED = {"kimi_k25": "language_model."}
"""Multimodal models without a class: their language model alone is built, and stored under this prefix."""
REMOTE = {
    "bailing_moe": "remote code alone; held against glm4_moe (2.0) and a float64 rewrite (1.5)",
    "deepseek": "remote code alone; held against a float64 rewrite",
}
"""Models that no class of transformers reads."""
RENAMED = {"ExaoneMoEForCausalLM": "ExaoneMoeForCausalLM", "PhiMoEForCausalLM": "PhimoeForCausalLM"}
TOLERANCE = 1e-4


def facts() -> dict[str, dict[str, Any]]:
    """The configuration of every model, by its name."""
    rows = (json.loads(line) for line in FACTS.read_text("utf-8").splitlines())
    return {row["model"]: row["config"] for row in rows}


def measured() -> dict[str, dict[str, str]]:
    """What `released` and `saved_again` came to when they were last compared, by the model's name."""
    found: dict[str, dict[str, str]] = json.loads(MEASURED.read_text("utf-8"))
    return found


def page(oracle: str) -> list[str]:
    """Lines of docs/families.md: what released configurations came to when they were last measured."""
    rows = measured()
    return [
        "",
        "## Released models",
        "",
        "A tiny checkpoint under every key that a released config.json carries (sizes shrunk, weights random), and the",
        f"same weights under the configuration that {oracle} writes. The number is the difference of the mean NLL from",
        "that class's own, rounded up to a power of ten. `python -m scripts.released` measures the table anew.",
        "",
        "| model | `model_type` | as released | re-saved |",
        "|---|---|---|---|",
        *(
            f"| {model} | `{config['model_type']}` | {rows[model]['released']} | {rows[model]['saved_again']} |"
            for model, config in facts().items()
        ),
        "",
        "A code in place of a number is a refusal: the class forgets where DBRX keeps the base of its rotation, and",
        "writes its own default beside it. Quantisation is left out here; every format has tests of its own.",
        "Gemma 4's keys are quoted from public copies of its config.json; `attention_bias`, `attention_dropout`,",
        "`initializer_range` and `vocab_size_per_layer_input` are not, and stand at its defaults.",
    ]


def main(names: list[str]) -> int:
    logging.set_verbosity_error()
    found = measured() if MEASURED.exists() and names else {}
    for model, config in facts().items():
        if not names or any(name in model for name in names):
            with tempfile.TemporaryDirectory() as folder:
                found[model] = compare(config, Path(folder))
            print(f"{model:50} {found[model]['released']:>10}  {found[model]['saved_again']}", flush=True)
    MEASURED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    from scripts import families  # its page shows what was just written

    families.main([])
    return 0


def compare(config: dict[str, Any], root: Path) -> dict[str, str]:
    """Differences of the mean NLL from the class's own, of both stored forms, or what stands in the way."""
    if config["model_type"] in REMOTE:
        return dict.fromkeys(("released", "saved_again"), REMOTE[config["model_type"]])
    expected = build(config, root)
    return {form: difference(root / form, expected) for form in ("released", "saved_again")}


def build(config: dict[str, Any], root: Path) -> float:
    """Store a tiny model of this configuration in both forms; return its mean NLL under its class."""
    again, released = root / "saved_again", root / "released"
    model = reference(as_trained(config), root)
    tiny.randomise(model, seed=1)
    model.save_pretrained(again)
    prefix = WRAPPED.get(config["model_type"], "")
    shutil.copytree(again, released)
    if prefix:
        file = released / "model.safetensors"
        save_file({prefix + name: tensor for name, tensor in load_file(file).items()}, file)
    (released / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = type(model).from_pretrained(again, dtype=torch.float32, attn_implementation="eager").eval()
    if as_trained(config) != config:
        reference(config, root).config.save_pretrained(again)
    with torch.no_grad():
        return mean_nll(getattr(loaded, "thinker", loaded)(input_ids=windows()).logits)


def as_trained(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration that the class reads as the model was trained: that of DBRX forgets where its base stands."""
    if config["model_type"] != "dbrx":
        return config
    base = {"rope_type": "default", "rope_theta": config["attn_config"]["rope_theta"]}
    return config | {"rope_parameters": base}


def reference(config: dict[str, Any], root: Path) -> Any:
    """The class's model of a configuration, with the weights that the class starts with."""
    inner = config["text_config"] if config["model_type"] in WRAPPED else config
    kind = inner["model_type"]
    file = root / "config.json"
    file.write_text(json.dumps(inner | {"model_type": STAND_IN.get(kind, kind)}), encoding="utf-8")
    parsed = transformers.AutoConfig.from_pretrained(root)
    name = (parsed.architectures or [""])[0]
    chosen = getattr(transformers, RENAMED.get(name, name), None) or transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    make = chosen._from_config if hasattr(chosen, "_from_config") else chosen.from_config
    return make(parsed, dtype=torch.float32).eval()


def difference(folder: Path, expected: float) -> str:
    """How far the replay's mean NLL is from the class's, or the refusal."""
    try:
        spec, reader = tiny.open_tiny(folder)
    except InputRefused as refused:
        return f"{refused.code}: {refused.where.split('config.json: ')[-1]}"
    found = mean_nll(
        Replay(spec, dtype=torch.float32, router_arithmetic="float32").forward(reader, windows())
    )
    apart = abs(found - expected)
    return "0" if apart == 0 else f"{10.0 ** math.ceil(math.log10(apart)):.0e}"


def windows() -> Tensor:
    """Token ids, int64 [2, 25]: longer than every window of the table."""
    return tiny.tokens(2, 25, vocab=200, seed=5)


def mean_nll(logits_WSV: Tensor) -> float:
    """Mean negative log-likelihood of the next token, nats."""
    log_p = torch.log_softmax(logits_WSV[:, :-1].float(), -1)
    return float(-log_p.gather(-1, windows()[:, 1:, None]).mean())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
