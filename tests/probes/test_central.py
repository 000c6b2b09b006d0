"""A central policy: what it governs, a probe file can repeat or leave out, but never widen."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from moe_atlas.errors import InputRefused, UsageError
from moe_atlas.probes import load_probes, load_registered, register

SOURCE = "".join(f'{{"tokens": [{n}, 1, 2, 3]}}\n' for n in range(5))
HEAD = """\
schema: atlas/probes/v1
name: gate
windows: {tokens: 4}
domains: [{name: prose, role: base, source: a.jsonl}]
"""
POLICY = """\
policy:
  task: none
  rewrite: {coordinate: 0.1, boundary: 0.2, transition: null, content: null}
  damage: {nll: 0.1, document_nll: 0.5, document_share: 0.05}
"""
CENTRAL = "schema: atlas/policy/v1\nname: release-gate\n" + POLICY
LAYERS = "protected_layers: all\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text(SOURCE)
    (tmp_path / "central.yaml").write_text(CENTRAL)
    (tmp_path / "probes.yaml").write_text(HEAD + LAYERS)
    return tmp_path


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "probes.yaml", folder / "central.yaml"


def test_the_policy_comes_from_the_central_file_and_the_lock_names_it(folder: Path) -> None:
    probes, central = files(folder)
    lock = register(probes, policy_from=central)
    assert lock.policy_from == {
        "name": "release-gate",
        "sha256": hashlib.sha256(central.read_bytes()).hexdigest(),
    }
    assert lock.body["probes"]["policy"]["rewrite"]["coordinate"] == 0.1
    loaded = load_registered(probes, central)
    assert loaded.config.policy.rewrite.limits["boundary"] == 0.2
    assert loaded.lock.facts()["policy_from"] == lock.policy_from


def test_a_probe_file_may_repeat_the_central_policy_in_another_layout(folder: Path) -> None:
    probes, central = files(folder)
    first = register(probes, policy_from=central)
    probes.write_text(
        HEAD + LAYERS + POLICY.replace("0.10", "1e-1").replace("null", "~") + "  stage: chart-preserving\n"
    )
    assert load_registered(probes, central).lock.digest == first.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("coordinate: 0.1", "coordinate: 0.9"),
        ("coordinate: 0.1", "coordinate: 0.01"),
        ("nll: 0.1", "nll: 0.2"),
    ],
)
def test_a_probe_file_cannot_contradict_it(folder: Path, old: str, new: str) -> None:
    probes, central = files(folder)
    probes.write_text(HEAD + LAYERS + POLICY.replace(old, new))
    for use in (load_probes, load_registered):
        with pytest.raises(InputRefused) as caught:
            use(probes, central)
        assert caught.value.code == "E_POLICY"
        assert caught.value.where == "probes.yaml:6"
        assert "release-gate" in caught.value.problem


@pytest.mark.parametrize("text", ["protected_layers: [3]\n", "protected_layers: mid-band\n"])
def test_protected_layers_and_evaluation_are_governed_where_the_central_file_says_so(
    folder: Path, text: str
) -> None:
    probes, central = files(folder)
    central.write_text(CENTRAL + LAYERS + "evaluation: {token_stride: 2}\n")
    probes.write_text(HEAD)
    config = load_probes(probes, central)
    assert (config.protected_layers.describe(), config.evaluation.token_stride) == ("all", 2)
    probes.write_text(HEAD + text)
    with pytest.raises(InputRefused, match="E_POLICY"):
        load_probes(probes, central)
    probes.write_text(
        HEAD + "evaluation: null\n"
    )  # the defaults, written out: not what the central file says
    with pytest.raises(InputRefused, match="E_POLICY"):
        load_probes(probes, central)


@pytest.mark.parametrize(
    ("text", "found", "bound"),
    [
        ("protected_layers: [3]\n", "[3]", "mid-band"),
        ("protected_layers: [0-60]\n", '["0-60"]', "mid-band"),
        ("evaluation: {quantile: 0.0001}\n" + LAYERS, '"quantile": 0.0001', '"quantile": 0.9'),
        ("evaluation: {token_stride: 9}\n" + LAYERS, '"token_stride": 9', '"token_stride": 1'),
        ("evaluation: {experts: all}\n" + LAYERS, '"experts": "all"', '"experts": "active"'),
    ],
)
def test_what_the_central_file_does_not_name_is_bound_to_what_is_safe(
    folder: Path, text: str, found: str, bound: str
) -> None:
    probes, central = files(folder)
    probes.write_text(HEAD + text)
    for use in (load_probes, register):
        with pytest.raises(InputRefused) as caught:
            use(probes, policy_from=central)
        assert caught.value.code == "E_POLICY"
        assert caught.value.where == "probes.yaml:5"
        problem, step = caught.value.problem, caught.value.next_step
        assert problem.index(found) < problem.index("release-gate") < problem.index(bound)
        assert "central.yaml" in step
        assert "free: [" in step
    load_probes(*_repaired(probes, central, text))


def _repaired(probes: Path, central: Path, text: str) -> tuple[Path, Path]:
    """The next step that the refusal names."""
    key = text.split(":")[0]
    central.write_text(CENTRAL + f"free: [{key}]\n")
    return probes, central


@pytest.mark.parametrize(
    "text", ["", "protected_layers: mid-band\n", LAYERS, "evaluation: {quantile: 0.9}\n"]
)
def test_what_is_safe_or_guards_more_may_be_said(folder: Path, text: str) -> None:
    probes, central = files(folder)
    probes.write_text(HEAD + text)
    config = load_probes(probes, central)
    assert config.protected_layers.describe() == ("all" if text == LAYERS else "mid-band")
    assert config.evaluation.describe() == {"experts": "active", "token_stride": 1, "quantile": 0.9}


def test_what_a_central_file_names_cannot_be_guarded_otherwise(folder: Path) -> None:
    probes, central = files(folder)
    central.write_text(CENTRAL + "protected_layers: [3]\nevaluation: {quantile: 0.5}\n")
    with pytest.raises(InputRefused, match=r"protected_layers is not that .*: there \[3\], here all"):
        load_probes(probes, central)
    probes.write_text(HEAD + "evaluation: {quantile: 0.9}\n")
    with pytest.raises(InputRefused, match=r"evaluation\.quantile: there 0\.5, here 0\.9"):
        load_probes(probes, central)


def test_a_contradiction_of_the_policy_names_both_values(folder: Path) -> None:
    probes, central = files(folder)
    probes.write_text(HEAD + LAYERS + POLICY.replace("boundary: 0.2", "boundary: 0.8"))
    with pytest.raises(InputRefused, match=r"policy\.rewrite\.boundary: there 0\.2, here 0\.8"):
        load_probes(probes, central)


def test_what_is_freed_is_the_probe_files_own(folder: Path) -> None:
    probes, central = files(folder)
    central.write_text(CENTRAL + "free: [protected_layers, evaluation]\n")
    probes.write_text(HEAD + "protected_layers: [3]\nevaluation: {token_stride: 9}\n")
    config = load_probes(probes, central)
    assert (config.protected_layers.describe(), config.evaluation.token_stride) == ([3], 9)
    probes.write_text(HEAD)
    with pytest.raises(InputRefused, match="protected_layers is missing"):
        load_probes(probes, central)


def test_locks_with_and_without_a_central_policy_do_not_stand_for_each_other(folder: Path) -> None:
    probes, central = files(folder)
    register(probes, policy_from=central)
    probes.write_text(HEAD + LAYERS + POLICY)
    with pytest.raises(InputRefused, match="policy_from"):
        load_registered(probes)
    own = register(probes, force=True)
    assert own.policy_from is None
    with pytest.raises(InputRefused, match="policy_from"):
        load_registered(probes, central)


def test_the_next_step_after_a_change_names_the_central_file_where_there_is_one(folder: Path) -> None:
    probes, central = files(folder)
    register(probes, policy_from=central)
    (folder / "a.jsonl").write_text(SOURCE + '{"tokens": [7, 1, 2, 3]}\n')
    with pytest.raises(InputRefused) as governed:
        load_registered(probes, central)
    probes.write_text(HEAD + LAYERS + POLICY)
    with pytest.raises(InputRefused) as own:
        load_registered(probes)
    again = f"restore it, or register anew on the record: atlas register --force {probes}"
    assert governed.value.code == own.value.code == "E_PROBE_LOCK"
    assert governed.value.next_step == f"{again} --policy-from FILE"
    assert own.value.next_step == again


def test_any_change_of_the_central_file_asks_for_a_new_registration(folder: Path) -> None:
    probes, central = files(folder)
    first = register(probes, policy_from=central)
    central.write_text(CENTRAL + "# reviewed\n")
    with pytest.raises(InputRefused, match="policy_from"):
        load_registered(probes, central)
    second = register(probes, force=True, policy_from=central)
    assert second.predecessor is not None
    assert second.predecessor["sha256"] == first.digest


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "E_PROBE_YAML"),
        ("[]", "E_PROBE_VALUE"),
        (CENTRAL.replace("atlas/policy/v1", "atlas/probes/v1"), "E_PROBE_VALUE"),
        (CENTRAL.replace("name: release-gate\n", ""), "E_PROBE_KEY"),
        ("schema: atlas/policy/v1\nname: x\n", "E_PROBE_KEY"),
        (CENTRAL + "windows: {tokens: 4}\n", "E_PROBE_KEY"),
        (CENTRAL + "name: again\n", "E_PROBE_YAML"),
        (CENTRAL.replace("0.1,", "&a 0.1,"), "E_PROBE_YAML"),
        (CENTRAL.replace("0.1,", ".nan,"), "E_PROBE_"),
        (CENTRAL.replace("task: none", "task: some"), "E_PROBE_VALUE"),
        (CENTRAL + "free: [policy]\n", "E_PROBE_VALUE"),
        (CENTRAL + "free: [evaluation, evaluation]\n", "E_PROBE_VALUE"),
        (CENTRAL + LAYERS + "free: [protected_layers]\n", "E_PROBE_VALUE"),
    ],
)
def test_a_central_file_is_read_as_strictly_as_a_probe_file(folder: Path, text: str, code: str) -> None:
    probes, central = files(folder)
    central.write_text(text)
    with pytest.raises(InputRefused, match=code) as caught:
        load_probes(probes, central)
    assert str(caught.value.where).startswith("central.yaml")


def test_no_central_file_is_usage(folder: Path) -> None:
    with pytest.raises(UsageError, match="E_POLICY_MISSING"):
        load_probes(folder / "probes.yaml", folder / "nowhere.yaml")
