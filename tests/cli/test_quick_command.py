"""`atlas quick` as a newcomer meets it: no configuration, the object by name, and never a pass."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from moe_atlas.cli import run
from moe_atlas.cli.checkpoints import quick as command
from moe_atlas.look import measuring
from moe_atlas.results import Receipt
from scripts.oracle import tiny
from tests.support import pairs

DOCUMENTS = ["--documents", "36"]
FEW = ["--documents", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints, and a cache of yardsticks of their own."""
    root = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield made(root)


def made(root):
    base = tiny.save("qwen3_moe", root / "base", seed=5, vocab_size=256)
    pairs.byte_tokenizer(base)
    pairs.variant(base, root / "light", pairs.jitter(1e-4, lambda name: "self_attn" in name))
    pairs.variant(base, root / "copied", pairs.copied_experts)
    pairs.variant(base, root / "noisy", pairs.jitter(0.8, lambda name: "norm" not in name))
    shutil.copytree(base, root / "same")
    return root


@pytest.fixture(scope="module")
def looks(place, tmp_path_factory):
    """The receipt of a look at each tuned checkpoint, made when it is asked for first."""
    out, known = tmp_path_factory.mktemp("looks"), {}

    def look(tuned):
        if tuned not in known:
            path = out / f"{tuned}.json"
            pair = [str(place / "base"), str(place / tuned)]
            assert run(["quick", *pair, *DOCUMENTS, "--receipt", str(path), "--quiet"]) == 0
            known[tuned] = path
        return known[tuned]

    return look


@pytest.fixture
def quick(place, tmp_path, capsys):
    def call(tuned, *extra):
        pair = [str(place / "base"), str(place / tuned)]
        code = run(["quick", *pair, *DOCUMENTS, "--receipt", str(tmp_path / "look.json"), *extra])
        return code, *capsys.readouterr()

    return call


def body(path):
    return json.loads(path.read_text())


def test_copied_experts_are_named_by_layer_and_number(quick, tmp_path):
    code, out, _ = quick("copied", "--exit-code")
    assert code == 1
    assert out.startswith(" A LOOK, NOT A VERDICT ")
    said = body(tmp_path / "look.json")
    layers = [row["layer"] for row in said["identity"]["layers"]]
    half = said["layers"][0]["experts"] // 2
    copies = ", ".join(f"{half + n} of {n}" for n in range(half))
    assert f"Experts are copies of other experts in layers {layers[0]}–{layers[-1]}: {copies}." in out
    assert "Lost experts" not in out
    assert "  atlas init" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.json", "look.windows.safetensors"]


def test_a_small_tune_is_no_finding(quick, tmp_path):
    code, out, _ = quick("light", "--exit-code")
    assert code == 0
    assert "No domain got certainly worse or better: " in out
    assert body(tmp_path / "look.json")["look"]["findings"] == []


def test_an_identical_pair_shows_no_difference_and_zeros(looks, quick):
    code, out, _ = quick("same", *FEW, "--exit-code")
    assert code == 0
    assert "No difference: both checkpoints hold the same values" in out
    receipt = Receipt.load(looks("same"))
    found = receipt.windows()
    assert (found["output.nll_tuned"] == found["output.nll_base"]).all()
    assert (receipt.layer_array("pair.content_drift") == 0.0).all()
    assert [row["nll_increase"]["estimate"] for row in receipt.body["domains"]] == [0.0, 0.0]
    assert receipt.body["look"]["worst_documents"] == []


def test_it_looks_at_everything_and_exits_0_unless_asked(quick, looks):
    assert quick("noisy")[0] == 0
    said = body(looks("noisy"))
    assert said["look"]["changed"] is True
    assert {line["gate"] for line in said["look"]["findings"]} == {"nll_increase"}


def test_the_yardstick_is_always_measured_and_shown(looks, quick):
    yardstick = body(looks("light"))["yardstick"]
    assert [row["name"] for row in yardstick["domains"]] == ["prose", "code"]
    assert "a 4-bit copy" in quick("light", *FEW)[1]


def test_the_margin_decides_what_is_a_finding(quick, tmp_path):
    assert quick("noisy", "--exit-code", "--margin", "50")[0] == 0
    assert body(tmp_path / "look.json")["look"]["margin"] == 50.0
    assert quick("noisy", "--exit-code", "--force")[0] == 1


def test_the_worst_documents_are_those_that_numpy_finds(looks):
    receipt = body(looks("noisy"))
    found = load_file(looks("noisy").with_name("noisy.windows.safetensors"))
    rise = found["output.nll_tuned"] - found["output.nll_base"]
    order = np.argsort(-rise)[:5]
    said = receipt["look"]["worst_documents"]
    assert [row["document"] for row in said] == [receipt["look"]["documents"][n] for n in order]
    assert [row["nll_increase"] for row in said] == pytest.approx(rise[order].tolist(), rel=1e-12)


def test_the_receipt_never_reads_as_a_pass(looks, place, tmp_path, capsys):
    path = str(looks("light"))
    assert body(looks("light"))["verdict"] == "inconclusive"
    assert Receipt.load(path).exit_code == 3
    assert run(["verify", path]) == 3
    assert "a look, not a verdict" in capsys.readouterr().out
    for name in ("r.md", "r.xml", "r.html", "r.json"):
        assert run(["report", path, "-o", str(tmp_path / name), "--quiet"]) == 0
    assert 'errors="3"' in (tmp_path / "r.xml").read_text().splitlines()[1]
    assert "INCONCLUSIVE" in (tmp_path / "r.md").read_text().splitlines()[0]
    assert "a look, not a verdict" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["exit_code"] == 3


@pytest.mark.parametrize(
    "line",
    [
        ["attest", "LOOK", "--checkpoint", "PLACE/light", "--output", "OUT/statement.json"],
        ["calibrate", "--healthy", "LOOK", "--damaged", "LOOK", "--out", "OUT/policy.yaml"],
        ["audit", "PLACE/base", "PLACE/light", "--probe", "PROBE", "--attempt", "LOOK", "--receipt", "OUT/r.json"],
        ["audit", "PLACE/base", "PLACE/light", "--probe", "PROBE", "--baseline", "LOOK", "--receipt", "OUT/r.json"],
        ["baseline", "PLACE/base", "--probe", "PROBE", "--previous", "LOOK", "--receipt", "OUT/r.json"],
        ["falsify", "LOOK"],
    ],
    ids=lambda line: " ".join(line[:1] + line[-4:-3]),
)  # fmt: skip
def test_nothing_takes_a_look_for_an_audit(line, looks, place, tmp_path, capsys):
    probe = pairs.probe(tmp_path / "probe")
    known = {"LOOK": looks("light"), "PLACE": place, "OUT": tmp_path, "PROBE": probe}
    for name, path in known.items():
        line = [part.replace(name, str(path)) for part in line]
    assert run(line) == 2
    said = capsys.readouterr().err
    assert said.startswith("atlas: E_KIND ")
    assert "look" in said


def test_a_look_whose_verdict_was_edited_does_not_verify(looks, tmp_path):
    said = body(looks("light")) | {"verdict": "pass"}
    (tmp_path / "light.json").write_text(json.dumps(said, indent=1) + "\n")
    shutil.copy(looks("light").with_name("light.windows.safetensors"), tmp_path)
    assert run(["verify", str(tmp_path / "light.json")]) == 5


def test_without_a_tokenizer_it_says_what_to_give(place, tmp_path, capsys):
    base, tuned = str(place / "light"), str(place / "base")
    assert run(["quick", base, tuned, "--receipt", str(tmp_path / "look.json")]) == 4
    said = capsys.readouterr().err
    assert said.startswith("atlas: E_PROBE_TOKENIZER ")
    assert "--tokenizer FILE, or --tokenizer bytes" in said
    assert list(tmp_path.iterdir()) == []


def test_a_given_tokenizer_and_the_one_beside_the_base_read_the_same_documents(looks, quick, place, tmp_path):
    assert quick("light", "--tokenizer", str(place / "base" / "tokenizer.json"))[0] == 0
    one, other = body(looks("light")), body(tmp_path / "look.json")
    assert one["probe"]["lock"] == other["probe"]["lock"]
    assert quick("light", *FEW, "--tokenizer", "bytes", "--force")[0] == 0
    assert body(tmp_path / "look.json")["probe"]["tokenizer"]["kind"] == "bytes"


def test_another_seed_reads_other_documents(looks, quick, tmp_path):
    assert quick("light", "--seed", "1")[0] == 0
    one, other = body(looks("light")), body(tmp_path / "look.json")
    assert set(one["look"]["documents"]) != set(other["look"]["documents"])
    assert one["probe"]["lock"]["content_sha256"] != other["probe"]["lock"]["content_sha256"]


def test_an_existing_receipt_is_kept_and_a_checkpoint_is_not_written_into(quick, place, tmp_path, capsys):
    (tmp_path / "look.json").write_text("mine")
    code, _, err = quick("light")
    assert code == 2
    assert err.startswith("atlas: E_EXISTS ")
    assert (tmp_path / "look.json").read_text() == "mine"
    pair = [str(place / "base"), str(place / "light")]
    assert run(["quick", *pair, "--receipt", str(place / "base" / "look.json")]) == 2
    assert capsys.readouterr().err.startswith("atlas: E_OVER_INPUT ")


def test_json_is_one_object_with_this_command_s_exit_code(quick):
    code, out, err = quick("copied", *FEW, "--json", "--exit-code")
    said = json.loads(out)
    assert (said["exit_code"], code, err) == (1, 1, "")
    assert said["kind"] == "look"
    assert said["verdict"] == "inconclusive"
    assert said["look"]["changed"] is True


def test_quiet_says_nothing(quick):
    assert quick("light", *FEW, "--quiet") == (0, "", "")


def estimated(pair, copy):
    return {"seconds": {"total": pair}, "yardstick": {"seconds": {"total": copy}}}


def test_a_long_look_says_first_how_long_and_what_makes_it_shorter(quick, monkeypatch):
    monkeypatch.setattr(measuring, "SHORT_BYTES", 0)
    monkeypatch.setattr(measuring, "plan", lambda *_: estimated(600.0, 660.0))
    _, _, err = quick("light", *FEW)
    assert err.splitlines()[0].startswith("atlas: this look will take about 21 min; --documents N ")
    monkeypatch.setattr(measuring, "plan", lambda *_: estimated(60.0, 59.0))
    assert "will take" not in quick("light", *FEW, "--force")[2]


def test_a_short_look_does_not_try_the_machine(quick, monkeypatch):
    monkeypatch.setattr(measuring, "plan", lambda *_: pytest.fail("the machine was tried"))
    assert quick("light", *FEW)[0] == 0


def test_the_estimate_is_that_of_plan(place, monkeypatch):
    said = []
    monkeypatch.setattr(measuring, "SHORT_BYTES", 0)
    monkeypatch.setattr(measuring, "LONG_SECONDS", 0.0)
    request = measuring.Request(documents=4)
    measuring.look(place / "base", place / "light", request, measuring.AuditOptions(), said.append)
    assert said[0]["tokens"]["all"] == 8 * 128
    command.announce(said[0])


@pytest.mark.parametrize("tokenizer", [(), ("--tokenizer", "bytes")])
def test_the_commands_that_a_look_ends_with_run_as_printed(quick, tmp_path, monkeypatch, tokenizer):
    words = np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"], (40, 200))
    rows = [json.dumps({"id": str(n), "text": " ".join(row)}) for n, row in enumerate(words)]
    (tmp_path / "notes.jsonl").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    _, out, _ = quick("light", *FEW, *tokenizer)
    lines = out.replace(" \\\n", "").splitlines()
    printed = [line.split()[1:] for line in lines if line.startswith("  atlas ")]
    assert [line[0] for line in printed] == ["init", "register", "audit"]
    assert tuple(printed[0][-2:]) == tokenizer or not tokenizer
    for line in printed:
        code = run([part.replace("NAME=PATH", "notes=notes.jsonl") for part in line])
        assert code in ((0,) if line[0] != "audit" else (0, 1, 3))


def test_documents_of_a_folder_are_domains_by_subfolder_and_row_file(quick, tmp_path):
    data = tmp_path / "data"
    for folder, text in (
        ("notes", "A plain sentence of prose about nothing. "),
        ("src", "def f(x):\n    return x\n"),
    ):
        (data / folder).mkdir(parents=True)
        for n in range(3):
            (data / folder / f"{n}.{'md' if folder == 'notes' else 'py'}").write_text(
                f"{n} " + f"{text}{n} " * 20
            )
    (data / "chat.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} words, " * 60}) + "\n" for n in range(4))
    )
    (data / "picture.png").write_bytes(b"\x89PNG")
    (data / "short.txt").write_text("too short")
    code, out, _ = quick("light", "--data", str(data))
    assert code == 0
    said = body(tmp_path / "look.json")
    assert [(row["name"], row["documents"]) for row in said["domains"]] == [
        ("notes", 3),
        ("src", 3),
        ("chat", 4),
    ]
    assert said["look"]["how"] == (
        "each subfolder is a domain; each file of rows is a domain; left out for their kind: 1 of 9 files"
    )
    assert "3 documents, fewer than 30" in out
    assert said["look"]["documents"][0].startswith("notes/")


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda data: None, "E_NO_FOLDER", "does not exist"),
        (lambda data: data.mkdir(), "E_PROBE_SOURCE", "holds no text that fills a window"),
        (lambda data: data.write_text("x"), "E_NO_FOLDER", "is no folder"),
    ],
)
def test_a_folder_that_holds_nothing_is_refused(quick, tmp_path, make, code, said):
    make(tmp_path / "data")
    result, _, err = quick("light", "--data", str(tmp_path / "data"))
    assert result in (2, 4)
    assert err.startswith(f"atlas: {code} ")
    assert said in err
