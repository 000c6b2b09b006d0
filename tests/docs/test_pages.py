"""Every command on a page runs as written, every link leads somewhere, every probe file parses."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import typer

from moe_atlas.cli import COMMANDS, app, run
from moe_atlas.probes.load import load_probes
from scripts.oracle import tiny
from tests.support import adapters, pairs, trainings
from tests.support.texts import SPECIAL, TEMPLATE, WORDS, conversations, sources

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
)
SHOWN = re.compile(r"`atlas ([a-z]+)[ `]|\$ atlas ([a-z]+)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)(?![\w-])")
BLOCK = re.compile(r"^( *)```console\n(.*?)^\1```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FOREIGN = {
    "--check",
    "--strict",
    "--nproc-per-node",
    "--hypothesis-show-statistics",
}  # sha256sum, torchrun, pytest
OWN_TOOL = {"statistics.md"}  # shows the options of scripts.coverage
EXIT = re.compile(r"#\s*exit (\d+)")


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


def commands(page: Path) -> list[tuple[str, int]]:
    """(command line, expected exit code) of every `$ atlas` and `$ sed` line, in order."""
    found = []
    for _, block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith(("$ atlas ", "$ sed ")):
                code = EXIT.search(line)
                found.append(
                    (line.strip().removeprefix("$ ").removeprefix("atlas "), int(code[1]) if code else 0)
                )
    return found


def tokenizer_of_letters_and_words(checkpoint: Path) -> None:
    """A tokenizer that tells apart both the standard library's texts and the words of the made documents."""
    made = tokenizers.Tokenizer.from_file(str(pairs.letter_tokenizer(checkpoint)))
    made.add_special_tokens(SPECIAL)
    made.add_tokens(WORDS)
    made.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory):
    """What a reader of the pages has before them: checkpoints and a registered probe set."""
    root = tmp_path_factory.mktemp("reader")
    base = tiny.save("qwen3_moe", root / "base.ckpt", seed=5, vocab_size=96)
    pairs.variant(base, root / "tuned.ckpt", pairs.jitter(3e-3, lambda name: "self_attn" in name))
    pairs.variant(base, root / "hard.ckpt", pairs.jitter(0.5, lambda name: "norm" not in name))
    pairs.variant(base, root / "copied.ckpt", pairs.copied_experts)
    shutil.copytree(base, root / "resumed.ckpt")
    trainings.write(root / "tuned.ckpt", root / "trained", processes=2, cut="columns", hub=True)
    adapters.train(base, root / "adapter", size=0.05, target_modules=["q_proj", "o_proj"])
    pairs.probe(root)
    (root / "probes.lock.json").unlink()
    dice = random.Random(1)
    tokenizer_of_letters_and_words(base)
    sources(root / "src", dice)
    conversations(root / "sft.jsonl", dice)
    return root


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_runs_as_written(page, reader_folder, tmp_path, monkeypatch, capsys):
    place = tmp_path / "here"
    shutil.copytree(reader_folder, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = commands(page)
    if not any(line.startswith("register") for line, _ in lines):
        assert run(["register", "probes.yaml"]) == 0
    edited = Path("probes.yaml").read_text()
    for line, expected in lines:
        if line.startswith("init"):
            Path("probes.yaml").unlink()
        if line.startswith("sed "):
            subprocess.run(line, shell=True, check=True)  # noqa: S602
            continue
        code = run(shlex.split(line, comments=True))
        if line.startswith("init"):  # the reader edits what it wrote
            Path("probes.yaml").write_text(edited)
        assert code == expected, f"{page.name}: atlas {line}: exit {code}\n{capsys.readouterr().err}"


PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
IN_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]


@pytest.fixture
def trainer(reader_folder, tmp_path):
    """What a page calls `trainer`: transformers' own on the reader's base, two steps and a checkpoint."""
    transformers = pytest.importorskip("transformers", reason="a page adds a callback to its Trainer")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    import torch

    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        reader_folder / "base.ckpt", dtype=torch.float32
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, save_steps=2, report_to=[], disable_tqdm=True,
        use_cpu=True, save_only_model=True,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows)


@pytest.mark.parametrize("page", IN_PYTHON, ids=lambda page: page.name)
def test_python_on_a_page_runs_in_order(page, reader_folder, tmp_path, monkeypatch, trainer):
    """All blocks of a page in one namespace, in a folder with a registered probe set and the pair that they name."""
    place = tmp_path / "here"
    shutil.copytree(reader_folder, place)
    shutil.copytree(place / "tuned.ckpt", place / "checkpoint-100")
    monkeypatch.chdir(place)
    assert run(["register", "probes.yaml"]) == 0
    names = {"trainer": trainer}
    for number, block in enumerate(PYTHON.findall(page.read_text())):
        exec(compile(block, f"{page.name}, Python block {number + 1}", "exec"), names)  # noqa: S102
    if "gate" in names:
        trainer.train()
        found = names["gate"].results
        assert [result.step for result in found] == [100, 2]
        assert None not in [result.verdict for result in found], found


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page):
    for groups in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        target = groups[0] or groups[1]
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_probe_files_on_pages_parse(tmp_path):
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```yaml\n(schema: atlas/probes.*?)```", page.read_text(), re.M | re.S)
    ]
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        assert load_probes(path).domains


def test_the_site_builds_without_a_warning_and_names_every_page(tmp_path):
    site = ["-m", "mkdocs", "build", "--strict", "-f", "configs/mkdocs.yml", "-d", str(tmp_path / "site")]
    built = subprocess.run([sys.executable, *site], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    start = (tmp_path / "site/index.html").read_text()
    assert [page.name for page in ROOT.glob("docs/*.md") if f'href="{page.stem}.html"' not in start] == [
        "index.md"
    ]


def test_no_page_is_an_orphan():
    text = "".join(page.read_text() for page in PAGES)
    for page in ROOT.glob("docs/*.md"):
        assert re.search(rf"\]\((docs/)?{re.escape(page.name)}(#[^)]*)?\)", text), (
            f"nothing links to {page.name}"
        )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda p: p.name
)
def test_every_command_and_option_that_a_page_names_exists(page):
    group = typer.main.get_command(app)
    known = {option for name in COMMANDS for one in group.commands[name].params for option in one.opts}
    text = page.read_text()
    assert {one or other for one, other in SHOWN.findall(text)} <= set(COMMANDS)
    if page.name not in OWN_TOOL:
        assert set(OPTION.findall(text)) <= known | FOREIGN
