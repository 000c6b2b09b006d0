"""Released configurations are read as they are, and mean what their classes make of them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from moe_atlas.loading.registry import read_config
from scripts import released
from tests.families.test_defaults import completed

MODELS = released.facts()
FORGOTTEN = {"databricks/dbrx-instruct": "the class forgets attn_config.rope_theta"}
REPLAYED = [
    "XiaomiMiMo/MiMo-V2-Flash",
    "moonshotai/Kimi-K2.5",
    "moonshotai/Kimi-Linear-48B-A3B-Instruct",
    "openai/gpt-oss-20b",
    "zai-org/GLM-4.5V",
]
"""Models that are built and replayed here; `python -m scripts.released` builds all of them."""


def read(values):
    return read_config(SimpleNamespace(label="x", config=values, logical={}))


@pytest.mark.parametrize("model", MODELS)
def test_a_released_configuration_is_read_as_its_class_completes_it(model):
    config = MODELS[model]
    family, blueprint = read(config)
    assert blueprint.model.routed_layers
    assert blueprint.model.accepted == {}
    if config["model_type"] in released.REMOTE or model in FORGOTTEN:
        return
    inner = config["text_config"] if config["model_type"] in released.WRAPPED else config
    assert read(completed(inner)) == (family, blueprint)


def test_every_model_of_the_table_was_measured_and_none_beyond_the_tolerance():
    found = released.measured()
    assert found.keys() == MODELS.keys()
    for model, forms in found.items():
        if MODELS[model]["model_type"] in released.REMOTE:
            continue
        assert float(forms["released"]) < released.TOLERANCE, model
        if model in FORGOTTEN:
            assert forms["saved_again"].startswith("E_FAMILY: rope_parameters.rope_theta"), model
        else:
            assert float(forms["saved_again"]) < released.TOLERANCE, model


@pytest.mark.parametrize("model", REPLAYED)
def test_a_model_comes_to_what_the_table_says(model, tmp_path):
    forms = released.compare(MODELS[model], tmp_path)
    assert [float(forms[form]) < released.TOLERANCE for form in ("released", "saved_again")] == [True, True]


def test_a_window_that_is_off_by_one_is_seen_by_the_comparison(tmp_path):
    config = MODELS["XiaomiMiMo/MiMo-V2-Flash"]
    expected = released.build(config, tmp_path)
    file = tmp_path / "released" / "config.json"
    file.write_text(
        re.sub(
            r'"(sliding_window|sliding_window_size|attention_chunk_size)": 8', r'"\1": 7', file.read_text()
        )
    )
    assert float(released.difference(tmp_path / "released", expected)) > released.TOLERANCE
