"""The demo's stages: each makes what is missing and says what it did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_atlas.errors import Exit
from moe_atlas.probes.lock import lock_path
from scripts.demo import screen
from scripts.demo.place import Facts, Place, measuring_key, training_key
from scripts.demo.probes import CANARIES, MEASURING, TOKENS, probe_file, write_documents
from scripts.demo.recipes import Recipes, summary
from scripts.demo.work import Outcome, TuneJob, run_atlas, run_tunes
from scripts.training.batches import held_out_batch
from scripts.training.checkpoint import load, save
from scripts.training.corpus import load_corpus
from scripts.training.loop import evaluate, load_per_expert, train_base
from scripts.training.model import Model
from scripts.training.task import load_items


class DemoError(Exception):
    """The demo cannot go on, for a reason in one line."""


def make_base(place: Place, recipes: Recipes) -> str:
    """Train the base unless it is there; return its key."""
    key = training_key(recipes.shape, recipes.base)
    facts = place.built("base", key)
    if facts is None:
        facts = place.note("base", key, _train_base(place, recipes))
        screen.wrote(place.root / "base", f"{facts['parameters'] / 1e6:.1f} M parameters, bfloat16, 4 shards")
    else:
        screen.say(f"  {place.root / 'base'} is there already, made from the same recipe and sources")
    screen.console.print(screen.base_table(facts))
    nll = ", ".join(f"{domain} {value:.2f}" for domain, value in facts["nll"].items())
    uniform = math.log(recipes.shape.vocab_size)
    screen.say(f"  held-out NLL, nats per byte: {nll}; every byte alike would be {uniform:.2f}")
    return key


def _train_base(place: Place, recipes: Recipes) -> Facts:
    model = Model(recipes.shape, seed=recipes.base.seed)
    with screen.progress("training", recipes.base.steps) as advance:
        train_base(
            model,
            recipes.base,
            load_corpus(),
            lambda step, loss: advance(step, f"loss {loss:.2f}"),
        )
    save(model, place.root / "base")
    return _base_facts(load(place.root / "base"))


def _base_facts(model: Model) -> Facts:
    """Size, held-out loss per domain, and the load of every routed layer over both domains."""
    held_out = load_corpus().held_out
    batches = {domain: held_out_batch(documents, TOKENS) for domain, documents in held_out.items()}
    nll = {domain: evaluate(model, batch) for domain, batch in batches.items()}
    load_LE = torch.stack([load_per_expert(model, batch) for batch in batches.values()]).sum(0)
    rows = zip(model.shape.routed_layers, load_LE, strict=True)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nll": nll,
        "load": [_load_facts(layer, load_E) for layer, load_E in rows],
    }


def _load_facts(layer: int, load_E: Any) -> Facts:
    share_E = load_E / load_E.mean()
    return {
        "layer": layer,
        "experts": len(load_E),
        "cv": float(share_E.std(correction=0)),
        "dead": int((load_E == 0).sum()),
        "least": float(share_E.min()),
        "most": float(share_E.max()),
    }


def make_tunes(place: Place, recipes: Recipes, base_key: str) -> dict[str, str]:
    """Tune whatever is not there yet, side by side; return every tune's key."""
    keys = {name: training_key(base_key, recipe) for name, recipe in recipes.tunes.items()}
    missing = _missing(place, "tunes", keys)
    jobs = {TuneJob(place.root / "base", place.root / n, recipes.tunes[n]): n for n in missing}
    total = sum(recipes.tunes[name].steps for name in missing)
    if jobs:

        def noted(job: TuneJob) -> None:
            place.note(jobs[job], keys[jobs[job]], {})

        with screen.progress(f"tuning, {len(jobs)} runs", total) as advance:
            for done in run_tunes(list(jobs), noted):
                advance(min(done, total), "")
    for name in missing:
        screen.wrote(place.root / name, summary(recipes.tunes[name]))
    return keys


def _missing(place: Place, what: str, keys: Mapping[str, str]) -> list[str]:
    missing = [name for name, key in keys.items() if place.built(name, key) is None]
    if not missing:
        screen.say(f"  all {len(keys)} {what} are there already, made from the same recipes and sources")
    return missing


def write_probes(place: Place, documents: int) -> str:
    """Write the held-out documents and both probe files; return their key."""
    files = {
        place.measuring: probe_file("demo-references", documents, MEASURING),
        place.probes: probe_file("demo", documents),
    }
    key = training_key(*files.values(), CANARIES)
    if place.built("documents", key) is None:
        corpus = load_corpus()
        write_documents(place.documents, corpus, load_items(corpus)[1], documents)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        place.note("documents", key, {})
        screen.wrote(place.documents, f"{documents} held-out documents a domain, {CANARIES} canaries")
    return key


def measure_references(
    place: Place, recipes: Recipes, tune_keys: Mapping[str, str], documents_key: str
) -> None:
    """Audit every reference tune with nothing gated, side by side.

    Raises:
        DemoError: an audit could not be carried out.
    """
    register(place.measuring)
    receipts = {place.receipt(tune).relative_to(place.root).as_posix(): tune for tune in recipes.references}
    keys = {name: measuring_key(tune_keys[tune], documents_key) for name, tune in receipts.items()}
    missing = _missing(place, "receipts", keys)
    lines = [audit_line(place, receipts[name], place.measuring) for name in missing]
    for name, done in zip(missing, side_by_side([[*line, "--quiet"] for line in lines]), strict=True):
        if not place.receipt(receipts[name]).exists() or done.code not in VERDICTS:
            raise DemoError(f"{name}: the audit ended with exit code {done.code}: {done.errors.strip()}")
        place.note(name, keys[name], {"code": done.code})


VERDICTS = (Exit.PASS, Exit.FAIL, Exit.INCONCLUSIVE)


def audit_line(place: Place, tune: str, probes: Path) -> list[str]:
    """The command line that audits a tune."""
    pair = [str(place.root / "base"), str(place.root / tune)]
    return ["audit", *pair, "--probe", str(probes), "--receipt", str(place.receipt(tune)), "--force"]


def judging_line(place: Place, tune: str) -> list[str]:
    """The same under the calibrated budgets."""
    return [*audit_line(place, tune, place.probes), "--policy-from", str(place.policy)]


def set_budgets(place: Place) -> None:
    """Let `atlas calibrate` write the policy, out of the references alone, and register it.

    Raises:
        DemoError: a reference tune is not healthy, so it cannot set budgets.
    """
    force = ["--force"] if place.policy.exists() else []
    atlas("calibrate", "--healthy", str(place.references), "--out", str(place.policy), *force)
    screen.output(place.policy.read_text(encoding="utf-8"))
    register(place.probes, "--policy-from", str(place.policy))


def register(probes: Path, *more: str) -> None:
    """Register a probe file; a lock that is there already is replaced, on its record."""
    force = ["--force"] if lock_path(probes).exists() else []
    atlas("register", str(probes), *more, *force)


def atlas(*arguments: str) -> None:
    """Run one command line of `atlas` and show what it wrote.

    Raises:
        DemoError: it did not exit with 0.
    """
    for done in side_by_side([arguments]):
        screen.output(done.output)
        if done.code != 0:
            raise DemoError(f"atlas {arguments[0]} ended with exit code {done.code}: {done.errors.strip()}")


def side_by_side(lines: Sequence[Sequence[str]]) -> list[Outcome]:
    """Show command lines of `atlas` and run them, as many at a time as there are cores."""
    for line in lines:
        screen.command(line)
    return list(run_atlas(lines, screen.console.is_terminal))
