from __future__ import annotations

import re
from pathlib import Path

import pytest
from probe_files import PROBES

from moe_atlas.errors import AtlasError, Exit, InputRefused, UsageError
from moe_atlas.probes import load_probes
from moe_atlas.probes.load import read_probes
from moe_atlas.probes.reading.collect import SeveralRefused
from moe_atlas.probes.settings.policy import TENSOR_CLASSES
from moe_atlas.probes.template import TEMPLATE


def read(text: str) -> object:
    return read_probes(text.encode(), Path("probes.yaml"))


def refusal(text: str) -> AtlasError:
    with pytest.raises(InputRefused) as caught:
        read(text)
    assert caught.value.exit_code == Exit.REFUSED
    assert caught.value.where.startswith("probes.yaml:")
    return caught.value


def swap(old: str, new: str) -> str:
    assert old in PROBES
    return PROBES.replace(old, new, 1)


def drop(line_with: str) -> str:
    return "".join(line for line in PROBES.splitlines(keepends=True) if line_with not in line)


def test_every_key_of_the_file_arrives(probe_file: Path) -> None:
    config = load_probes(probe_file)
    rewrite = config.policy.rewrite
    assert config.name == "gate"
    assert config.tokenizer == "bytes"
    assert config.windows.describe() == {"tokens": 32, "per_document": 1, "seed": 7}
    assert config.evaluation.describe() == {"experts": "active", "token_stride": 1, "quantile": 0.9}
    assert config.protected_layers.ranges == ((2, 2), (8, 20))
    assert [(d.name, d.role, d.source, d.documents) for d in config.domains] == [
        ("prose", "base", "prose.jsonl", 5),
        ("canary", "canary", "canary.jsonl", None),
        ("code", "base", "code.jsonl", 5),
        ("sft", "task", "sft.jsonl", 5),
    ]
    assert config.domains[1].max_nll_increase == 0.5
    assert config.domains[3].success is not None
    assert config.domains[3].success.describe() == {
        "metric": "nll",
        "at_most": 1.9,
        "relative_to_base": False,
    }
    assert (config.policy.stage, config.policy.confidence, config.policy.resamples) == (
        "chart-preserving",
        0.95,
        4000,
    )
    assert rewrite.budgets() == {
        "coordinate": 0.02,
        "boundary": 0.08,
        "transition": 0.01,
        "content": 0.1,
        "expert_content": 0.35,
        "overlap_drop": 0.02,
        "dead_share_rise": 0.02,
        "entropy_drop": 0.1,
        "load_cv_rise": 0.25,
    }
    assert rewrite.refinement is not None
    assert rewrite.handoff is not None
    assert rewrite.smooth is not None
    assert (rewrite.refinement.mu, rewrite.refinement.tau) == ((1, 1, 0.5), 0.25)
    assert rewrite.handoff.lambda_ == (1, 0.5)
    assert list(rewrite.smooth.describe().values()) == [10, 30000, 50, 50]
    assert config.policy.damage.describe() == {"nll": 0.02, "document_nll": 0.5, "document_share": 0.05}
    assert config.policy.weights.must_not_change == ("router",)
    assert config.policy.weights.must_change == ()
    assert not config.policy.task_none


@pytest.mark.parametrize(
    ("written", "kept"), [("kl: 0.3, ", {"kl": 0.3}), ("kl: null, ", {"kl": None}), ("", {})]
)
def test_an_absent_limit_of_the_divergence_is_no_null(written: str, kept: dict[str, float | None]) -> None:
    config = read_probes(
        PROBES.replace("{nll: 0.02,", "{nll: 0.02, " + written).encode(), Path("probes.yaml")
    )
    described = config.policy.damage.describe()
    assert described == {"nll": 0.02, "document_nll": 0.5, "document_share": 0.05} | kept


def test_defaults() -> None:
    text = """\
schema: atlas/probes/v1
name: n
windows: {tokens: 8}
protected_layers: all
domains: [{name: a, role: base, source: a.jsonl}]
policy:
  task: none
  rewrite: {coordinate: null, boundary: 0.1, transition: null, content: null}
  damage: {nll: 0.02, document_nll: null, document_share: null}
"""
    config = read_probes(text.encode(), Path("probes.yaml"))
    described = config.describe()
    assert described["tokenizer"] is None
    assert described["windows"] == {"tokens": 8, "per_document": 1, "seed": 0}
    assert described["evaluation"] == {"experts": "active", "token_stride": 1, "quantile": 0.9}
    policy = described["policy"]
    assert (policy["stage"], policy["confidence"], policy["resamples"]) == ("chart-preserving", 0.95, 4000)
    assert config.policy.rewrite.budgets() == {"boundary": 0.1, "expert_content": 0.35}
    assert (policy["rewrite"]["refinement"], policy["rewrite"]["overlap_drop"]) == (None, None)
    assert policy["weights"] == {"must_not_change": [], "must_change": []}
    assert policy["set_for"] == {"family": None, "top_k": None, "experts": None}
    assert policy["task"] == "none"


def test_the_description_is_itself_a_probe_file(probe_file: Path) -> None:
    import json

    described = load_probes(probe_file).describe()
    again = read_probes(json.dumps(described).encode(), Path("probes.yaml"))
    assert again.describe() == described


@pytest.mark.parametrize(
    ("text", "line", "problem", "hint"),
    [
        (swap("name: gate", "nam: gate"), 2, "unknown key 'nam'", "did you mean name?"),
        (swap("seed: 7", "sead: 7"), 4, "unknown key 'sead' in windows", "did you mean seed?"),
        (
            swap("token_stride", "zzz"),
            5,
            "unknown key 'zzz' in evaluation",
            "known keys: experts, token_stride",
        ),
        (swap("documents: 5}", "docs: 5}"), 8, "unknown key 'docs' in domains[0]", "did you mean documents?"),
        (swap("at_most", "at_mots"), 11, "unknown key 'at_mots' in domains[3].success", "at_most"),
        (swap("stage:", "stages:"), 13, "unknown key 'stages' in policy", "did you mean stage?"),
        (swap("boundary:", "boundry:"), 16, "unknown key 'boundry' in policy.rewrite", "boundary"),
        (swap("tau:", "taus:"), 18, "unknown key 'taus' in policy.rewrite.refinement", "tau"),
        (swap("lambda:", "lamda:"), 18, "unknown key 'lamda' in policy.rewrite.handoff", "lambda"),
        (
            swap("occupancy: 3", "ocupancy: 3"),
            19,
            "unknown key 'ocupancy' in policy.rewrite.smooth",
            "occupancy",
        ),
        (swap("document_nll", "doc_nll"), 20, "unknown key 'doc_nll' in policy.damage", "document_nll"),
        (swap("must_change", "must_chnge"), 21, "unknown key 'must_chnge' in policy.weights", "must_change"),
        (drop("name: gate"), 1, "name is missing", "add the key"),
        (drop("schema:"), 1, "schema is missing", "add"),
        (PROBES[: PROBES.index("policy:")], 1, "policy is missing", "--policy-from FILE"),
        (drop("windows:"), 1, "windows is missing", "add"),
        (drop("protected_layers"), 1, "protected_layers is missing", "add"),
        (swap("tokens: 32, ", ""), 4, "windows.tokens is missing", "add"),
        (swap(", source: prose.jsonl", ""), 8, "domains[0].source is missing", "add"),
        (swap(", max_nll_increase: 0.5", ""), 9, "domains[1].max_nll_increase is missing", "add"),
        (swap(", success: {metric: nll, at_most: 1.9}", ""), 11, "domains[3].success is missing", "add"),
        (swap(", at_most: 1.9", ""), 11, "domains[3].success.at_most is missing", "add"),
        (drop("damage:"), 13, "policy.damage is missing", "add"),
        (swap("nll: 0.02, d", "d"), 20, "policy.damage.nll is missing", "add"),
        (swap(", tau: 0.25", ""), 18, "policy.rewrite.refinement.tau is missing", "add"),
    ],
)
def test_unknown_and_missing_keys(text: str, line: int, problem: str, hint: str) -> None:
    error = refusal(text)
    assert error.code == "E_PROBE_KEY"
    assert error.where == f"probes.yaml:{line}"
    assert problem in error.problem
    assert hint in error.next_step


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[1]\n", 1, "the file must be a mapping, found a list"),
        ("just text\n", 1, "the file must be a mapping, found str"),
        (swap("probes/v1", "probes/v2"), 1, "schema must be one of atlas/probes/v1"),
        (swap("name: gate", "name: 7"), 2, "name must be text, found int '7'"),
        (swap("name: gate", "name: ''"), 2, "name must be 1 to 512 printable"),
        (swap("name: gate", 'name: "a\\u202eb"'), 2, "'a\\u202eb'"),
        (swap("name: gate", 'name: "a\\e[31mb"'), 2, "printable"),
        (swap("tokenizer: bytes", "tokenizer: [a]"), 3, "tokenizer must be text, found a list"),
        (
            swap("{tokens: 32, per_document: 1, seed: 7}", "32"),
            4,
            "windows must be a mapping, found int '32'",
        ),
        (swap("tokens: 32", "tokens: 1"), 4, "windows.tokens must be from 2 to"),
        (swap("tokens: 32", "tokens: 32.0"), 4, "windows.tokens must be an integer, found float"),
        (swap("tokens: 32", "tokens: true"), 4, "windows.tokens must be an integer, found bool"),
        (swap("tokens: 32", "tokens: '32'"), 4, "windows.tokens must be an integer, found str"),
        (swap("per_document: 1", "per_document: 0"), 4, "windows.per_document must be from 1"),
        (swap("seed: 7", "seed: -1"), 4, "windows.seed must be from 0"),
        (swap("experts: active", "experts: some"), 5, "evaluation.experts must be one of active, all"),
        (swap("token_stride: 1", "token_stride: 0"), 5, "evaluation.token_stride must be from 1"),
        (swap("quantile: 0.9", "quantile: 0"), 5, "evaluation.quantile must be above 0 and at most 1"),
        (swap("quantile: 0.9", "quantile: 1.01"), 5, "at most 1, found 1.01"),
        (swap("[2, 8-20]", "mid"), 6, "protected_layers must be all, mid-band or a list"),
        (swap("[2, 8-20]", "[]"), 6, "nothing would be guarded"),
        (swap("[2, 8-20]", "[2, 20-8]"), 6, "does not ascend"),
        (swap("[2, 8-20]", "[2, -3]"), 6, "indices and ranges"),
        (swap("[2, 8-20]", "[9, 8-20]"), 6, "names a layer twice"),
        (swap("[2, 8-20]", "[2, true]"), 6, "indices and ranges"),
        (swap("[2, 8-20]", "[2, [3]]"), 6, "indices and ranges"),
        (swap("role: base, source: p", "role: bsae, source: p"), 8, "must be one of base, task, canary"),
        (swap("name: code", "name: prose"), 10, "domain name 'prose' is taken, see probes.yaml:8"),
        (swap("documents: 5", "documents: 0"), 8, "domains[0].documents must be from 1"),
        (swap("max_nll_increase: 0.5", "max_nll_increase: 0"), 9, "above 0"),
        (swap("documents: 5}", "max_nll_increase: 0.5}"), 8, "belongs to role canary, this domain is base"),
        (swap("documents: 5}", "success: {metric: nll}}"), 8, "belongs to role task, this domain is base"),
        (swap("metric: nll", "metric: acc"), 11, "must be one of nll, token_accuracy, exact_match"),
        (swap("at_most: 1.9", "at_least: 1.9"), 11, "does not go with nll; write at_most"),
        (swap("nll, at_most: 1.9", "exact_match, at_least: 1.9"), 11, "at most 1, found 1.9"),
        (swap("nll, at_most: 1.9", "exact_match, at_most: 0.9"), 11, "write at_least"),
        (swap("at_most: 1.9", "at_most: -0.1"), 11, "must be at least 0, found -0.1"),
        (swap("at_most: 1.9", "at_most: 1, relative_to_base: yes"), 11, "must be true or false, found str"),
        (swap("chart-preserving", "chart-preservin"), 13, "must be one of chart-preserving"),
        (swap("confidence: 0.95", "confidence: 1"), 14, "above 0.5 and below 1, found 1"),
        (swap("confidence: 0.95", "confidence: 95"), 14, "found 95"),
        (swap("resamples: 4000", "resamples: 10"), 15, "policy.resamples must be from 200"),
        (swap("nll: 0.02", "nll: 0.02, kl: 0"), 20, "policy.damage.kl must be above 0, found 0"),
        (swap("boundary: 0.08, ", ""), 16, "policy.rewrite.boundary is missing"),
        (swap("coordinate: 0.02", "coordinate: 0"), 16, "above 0 and at most 2, found 0"),
        (swap("coordinate: 0.02", "coordinate: -1e-3"), 16, "above 0 and at most 2"),
        (swap("coordinate: 0.02", "coordinate: '0.02'"), 16, "must be a number, found str"),
        (swap("boundary: 0.08", "boundary: 8"), 16, "above 0 and at most 1, found 8"),
        (swap("transition: 0.01", "transition: 0.7"), 16, "at most 0.693147"),
        (swap("content: 0.10", "content: true"), 16, "must be a number, found bool"),
        (swap("mu: [1, 1, 0.5]", "mu: [1, 1]"), 18, "must be a list of 3 numbers, found 2"),
        (swap("mu: [1, 1, 0.5]", "mu: [1, 1, a]"), 18, "policy.rewrite.refinement.mu[2] must be a number"),
        (swap("mu: [1, 1, 0.5]", "mu: [0, 0, 0]"), 18, "could never fail"),
        (swap("mu: [1, 1, 0.5]", "mu: [1, -1, 0]"), 18, "at least 0, found -1"),
        (swap("tau: 0.25", "tau: 0"), 18, "above 0"),
        (swap("adjacency: 10", "adjacency: 0"), 19, "above 0"),
        (swap("document_share: 0.05", "document_share: 1"), 20, "above 0 and below 1"),
        (swap("nll: 0.02", "nll: 0"), 20, "above 0"),
        (swap("[router]", "[routers]"), 21, "names no tensor class: 'routers'"),
        (swap("[router]", "[router, router]"), 21, "names router twice"),
        (swap("must_change: []", "must_change: [router]"), 21, "asks router both to change and not to"),
        (swap("must_change: []", "must_change: router"), 21, "must be a list"),
        (PROBES + "  task: none\n", 22, "policy.task says none, but there is a task domain"),
        (drop("role: task"), 12, "there is no task domain and policy does not say so"),
        (
            drop("role: task").replace("stage: chart-preserving", "stage: knowledge-expansive"),
            12,
            "stage knowledge-expansive needs a task domain",
        ),
        (PROBES + "  set_for: {top_k: 0}\n", 22, "policy.set_for.top_k must be from 1"),
    ],
)
def test_wrong_types_and_ranges(text: str, line: int, problem: str) -> None:
    error = refusal(text)
    assert error.code == "E_PROBE_VALUE"
    assert problem in error.problem
    assert error.where == f"probes.yaml:{line}"


def test_the_four_channels_must_be_written_be_it_as_null() -> None:
    config = read_probes(swap("boundary: 0.08", "boundary: null").encode(), Path("p.yaml"))
    assert config.policy.rewrite.limits["boundary"] is None
    assert "boundary" not in config.policy.rewrite.budgets()
    for channel in ("coordinate", "boundary", "transition", "content"):
        text = re.sub(rf"\b{channel}: [0-9.]+,? ?", "", PROBES, count=1)
        assert f"policy.rewrite.{channel} is missing" in refusal(text).problem


@pytest.mark.parametrize(
    ("content", "written", "gated"),
    [("0.1", "", 0.35), ("null", "", 0.35), ("0.6", "", 0.6), ("0.6", "0.2", 0.2), ("0.1", "null", None)],
)
def test_single_experts_are_gated_unless_null_is_on_record(
    content: str, written: str, gated: float | None
) -> None:
    own = f", expert_content: {written}" if written else ""
    config = read_probes(swap("content: 0.10", f"content: {content}{own}").encode(), Path("p.yaml"))
    assert config.policy.rewrite.limits["expert_content"] == gated
    assert config.policy.rewrite.budgets().get("expert_content") == gated


def test_a_probe_set_without_base_domain_guards_nothing() -> None:
    error = refusal(PROBES.replace("role: base,", "role: canary, max_nll_increase: 1,"))
    assert "at least one of role base" in error.problem


def test_relative_success_rules() -> None:
    text = swap("nll, at_most: 1.9", "nll, at_most: -0.1, relative_to_base: true")
    success = read_probes(text.encode(), Path("p")).domains[3].success
    assert success is not None
    assert (success.at_most, success.at_least, success.relative_to_base) == (-0.1, None, True)
    text = swap("nll, at_most: 1.9", "token_accuracy, at_least: 0.05, relative_to_base: true")
    success = read_probes(text.encode(), Path("p")).domains[3].success
    assert success is not None
    assert (success.at_most, success.at_least) == (None, 0.05)


def test_every_tensor_class_may_be_named() -> None:
    text = swap("[router]", str(list(TENSOR_CLASSES)))
    assert read_probes(text.encode(), Path("p")).policy.weights.must_not_change == TENSOR_CLASSES


def test_a_file_that_is_not_there_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_PROBE_MISSING") as caught:
        load_probes(tmp_path / "none.yaml")
    assert caught.value.exit_code == Exit.USAGE
    assert "atlas init" in str(caught.value)


def test_a_folder_or_fifo_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml"):
        with pytest.raises(InputRefused) as caught:
            load_probes(path)
        assert caught.value.code == "E_PROBE_FILE"


def test_the_template_is_valid_and_gates_nothing_by_invention() -> None:
    config = read_probes(TEMPLATE.encode(), Path("probes.yaml"))
    assert config.policy.rewrite.budgets() == {"expert_content": 0.35}  # the default, written out
    assert set(config.policy.damage.describe().values()) == {None}
    # What the template shows in comments must be valid too.
    shown = TEMPLATE.replace("  # - {", "  - {").replace("    # refinement", "    refinement")
    shown = shown.replace("    # handoff", "    handoff").replace("    # smooth", "    smooth")
    shown = shown.replace("  # set_for", "  set_for").replace("  task: none\n", "")
    config = read_probes(shown.encode(), Path("probes.yaml"))
    assert [domain.role for domain in config.domains] == ["base", "base", "canary", "task"]
    assert config.policy.set_for.top_k == 8
    assert config.policy.rewrite.smooth is not None


@pytest.mark.parametrize(
    ("expression", "routed", "expected"),
    [
        ("all", [3, 1, 2], [1, 2, 3]),
        ("mid-band", list(range(1, 28)), list(range(8, 21))),  # 27 routed layers: the paper's 8-20
        ("mid-band", [0, 1, 2, 3], [1, 2]),
        ("mid-band", [0, 1, 2], [1]),
        ("mid-band", [0, 1], [0, 1]),
        ("mid-band", [5], [5]),
        ("mid-band", [0, 1, 2, 3, 4], [2]),
        ("[2, 4-6]", list(range(10)), [2, 4, 5, 6]),
        ("[4-6, 2]", list(range(10)), [2, 4, 5, 6]),
        ("['4 - 6']", list(range(10)), [4, 5, 6]),
    ],
)
def test_protected_layers(expression: str, routed: list[int], expected: list[int]) -> None:
    config = read_probes(swap("[2, 8-20]", expression).encode(), Path("p"))
    assert config.protected_layers.resolve(routed) == expected


def test_protecting_a_layer_that_is_not_routed_is_refused() -> None:
    config = read_probes(swap("[2, 8-20]", "[0, 2-4]").encode(), Path("probes.yaml"))
    with pytest.raises(InputRefused) as caught:
        config.protected_layers.resolve([1, 2, 3, 5])
    assert caught.value.code == "E_PROBE_LAYERS"
    assert caught.value.where == "probes.yaml:6"
    assert "0, 4" in caught.value.problem
    assert "1-3, 5" in caught.value.next_step


def test_all_errors_of_a_file_are_said_at_once() -> None:
    """Every key by itself; a key that is there under a misspelt name is not missing as well."""
    text = PROBES
    for old, new in (
        ("name: gate", "nam: gate"),
        ("seed: 7", "seed: x"),
        ("quantile: 0.9", "quantile: 3"),
        ("[2, 8-20]", "[2, 8-]"),
        ("role: canary", "role: canari"),
        ("stage: chart-preserving", "stage: chart"),
        ("boundary: 0.08", "boundary: 9"),
        ("mu: [1, 1, 0.5]", "mu: [1]"),
        ("document_share: 0.05", "document_share: 5"),
        ("[router]", "[routr]"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(SeveralRefused) as caught:
        read_probes(text.encode(), Path("probes.yaml"))
    lines = caught.value.lines()
    assert [line.split()[1] for line in lines] == [
        f"probes.yaml:{number}:" for number in (2, 4, 5, 6, 9, 13, 16, 18, 20, 21)
    ]
    assert all(line.startswith(("E_PROBE_KEY ", "E_PROBE_VALUE ")) for line in lines)
    assert str(caught.value) == "\n".join(lines)
    assert caught.value.exit_code == 4


def test_a_check_across_keys_waits_for_the_keys() -> None:
    """The task domain's rule cannot be read, so nothing is said of a missing task domain."""
    text = PROBES.replace("role: task", "role: tusk").replace("seed: 7", "seed: x")
    with pytest.raises(SeveralRefused) as caught:
        read_probes(text.encode(), Path("probes.yaml"))
    assert [error.problem.partition(" must")[0] for error in caught.value.errors] == [
        "windows.seed",
        "domains[3].role",
    ]


def test_a_central_policy_says_all_of_its_errors_too(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("schema: atlas/policy/v2\npolicies: {}\nname: 3\n")
    (tmp_path / "probes.yaml").write_text(PROBES)
    with pytest.raises(SeveralRefused) as caught:
        load_probes(tmp_path / "probes.yaml", policy)
    assert [error.where for error in caught.value.errors] == [f"policy.yaml:{n}" for n in (1, 2, 3)]


def test_choices_that_are_not_made_leave_the_lock_as_it_was() -> None:
    described = read_probes(PROBES.encode(), Path("probes.yaml")).describe()
    assert not {"special_tokens", "chat_template"} & set(described)
    assert not {"rows", "shorter"} & set(described["domains"][0])
    text = "special_tokens: bos\nchat_template: t.jinja\n" + PROBES.replace(
        "source: prose.jsonl", "source: prose.jsonl, rows: messages, shorter: skip"
    )
    described = read_probes(text.encode(), Path("probes.yaml")).describe()
    assert (described["special_tokens"], described["chat_template"]) == ("bos", "t.jinja")
    assert (described["domains"][0]["rows"], described["domains"][0]["shorter"]) == ("messages", "skip")


DAMAGE_ONLY = (
    PROBES.split("policy:")[0]
    + "policy: {stage: damage-only, damage: {nll: 0.1, document_nll: 1, document_share: 0.1}"
)


def test_a_stage_that_judges_no_atlas_needs_no_budgets() -> None:
    config = read(DAMAGE_ONLY + "}\n")
    assert config.policy.stage == "damage-only"
    assert config.policy.rewrite.budgets() == {}
    assert set(config.policy.rewrite.describe().values()) == {None}
    nulls = read(DAMAGE_ONLY + ", rewrite: {content: null, expert_content: null}}\n")
    assert nulls.policy == config.policy


@pytest.mark.parametrize(
    "budget", ["content: 0.2", "expert_content: 0.35", "refinement: {mu: [1, 1, 1], tau: 0.5}"]
)
def test_a_budget_under_a_stage_that_judges_no_atlas_is_refused(budget: str) -> None:
    """Neither reading of it would be right: a budget that gates nothing, or a verdict that says it did not judge."""
    found = refusal(DAMAGE_ONLY + f", rewrite: {{{budget}}}}}\n")
    key = budget.split(":")[0]
    assert f"stage damage-only judges no atlas, and policy.rewrite.{key} is a budget of it" in str(found)
    assert "declare stage chart-preserving" in str(found)
