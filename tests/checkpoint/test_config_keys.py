"""Keys of config.json: every difference found, none drowned by how a file was written."""

from __future__ import annotations

import pytest

from moe_atlas.checkpoint.config_keys import difference, flat


def found(base, tuned):
    return [
        (row["key"], row["base"], row["tuned"], row["rank"]) for row in difference(flat(base), flat(tuned))
    ]


@pytest.mark.parametrize(
    ("key", "base", "tuned"),
    [
        ("eos_token_id", 2, 5),
        ("eos_token_id", 2, [2, 5]),
        ("max_position_embeddings", 4096, 131072),
        ("architectures", ["A"], ["B"]),
        ("sliding_window", None, 4096),
        ("dtype", "bfloat16", "float16"),
    ],
)
def test_a_key_that_a_server_acts_on_comes_with_both_values(key, base, tuned):
    rows = found({key: base, "zzz": 1}, {key: tuned, "zzz": 2})
    assert [row[0] for row in rows] == [key, "zzz"]
    assert [row[3] for row in rows] == ["served", "other"]


def test_nested_keys_are_named_in_full():
    base = {"auto_map": {"AutoModel": "a.A"}, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    tuned = {"auto_map": {"AutoModel": "b.B"}, "rope_scaling": {"rope_type": "yarn", "factor": 40.0}}
    assert found(base, tuned) == [
        ("auto_map.AutoModel", '"a.A"', '"b.B"', "served"),
        ("rope_parameters.factor", "4.0", "40.0", "served"),
    ]
    assert found({"text_config": {"eos_token_id": 1}}, {"text_config": {}}) == [
        ("text_config.eos_token_id", "1", None, "served"),
    ]


def test_two_spellings_of_one_value_are_no_difference():
    old = {
        "torch_dtype": "bfloat16",
        "rope_theta": 1e6,
        "rope_scaling": None,
        "num_experts": 8,
        "bad_words_ids": None,
    }
    new = {
        "dtype": "torch.bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "num_local_experts": 8,
    }  # fmt: skip
    assert found(old, new) == []
    assert found(old, new | {"num_local_experts": 9}) == [("num_experts", "8", "9", "other")]
    scaled = {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert found(scaled, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}) == []


def test_a_spelling_does_not_hide_what_stands_beside_it():
    """A second rope_theta beside the first is a difference, whichever of the two a loader takes."""
    base = {"rope_parameters": {"rope_theta": 1e6}}
    rows = found(base, base | {"rope_theta": 5e5})
    assert [(key, other) for key, _, other, _ in rows] == [("rope_theta", "500000.0")]


def test_how_a_file_was_written_comes_last():
    base = {"transformers_version": "4", "_name_or_path": "a", "eos_token_id": 1, "x": 1, "use_cache": True}
    tuned = {"transformers_version": "5", "_name_or_path": "b", "eos_token_id": 2, "x": 2, "use_cache": False}
    assert [row[3] for row in found(base, tuned)] == ["served", "other", *["cosmetic"] * 3]


def test_numbers_and_truth_values_are_told_apart():
    assert found({"x": 1}, {"x": True}) == [("x", "1", "true", "other")]


def test_long_values_are_known_by_their_digest():
    rows = found({"x": list(range(500))}, {"x": list(range(501))})
    assert all("characters, sha256" in value for value in rows[0][1:3])
    assert flat({"k" * 500: 1}).keys() != flat({"k" * 499 + "l": 1}).keys()


def test_a_configuration_of_very_many_keys_stays_small():
    base = {"id2label": {str(number): number for number in range(5000)}, "eos_token_id": 1}
    assert set(flat(base)) == {"id2label", "eos_token_id"}
    assert [row[0] for row in found(base, base | {"eos_token_id": 2})] == ["eos_token_id"]
    wide = {str(number): number for number in range(5000)}
    assert set(flat(wide)) == {"config.json"}
    assert found(wide, wide | {"7": 8})[0][0] == "config.json"


def test_depth_is_bounded():
    value: dict = {}
    for _ in range(50):
        value = {"a": value, "b": 1}
    assert flat(value)["b"] == "1"
    assert len(flat(value)) < 20
