"""The demo's stages: each makes what is missing and says what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moe_atlas.api import Receipt
from moe_atlas.probes.registration import register
from scripts.demo import screen
from scripts.demo.batches import Text, held_out_batch
from scripts.demo.checkpoint import load, save
from scripts.demo.corpus import load_corpus
from scripts.demo.model import Model
from scripts.demo.place import HERE, Facts, Place, measuring_key, training_key
from scripts.demo.policy import (
    CALIBRATION,
    Budget,
    Limits,
    damage_limits,
    policy_block,
    rewrite_budgets,
    unhealthy,
)
from scripts.demo.probes import CANARIES, DOCUMENTS, TOKENS, probe_file, write_documents
from scripts.demo.recipes import Recipes
from scripts.demo.task import load_items
from scripts.demo.train import evaluate, load_per_expert, train_base
from scripts.demo.work import AuditJob, Job, TuneJob, run_jobs


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
    screen.say(f"  held-out NLL, nats per byte: {nll}")
    return key


def _train_base(place: Place, recipes: Recipes) -> Facts:
    corpus = load_corpus()
    model = Model(recipes.shape, seed=recipes.base.seed)
    with screen.progress("training", recipes.base.steps) as advance:
        train_base(
            model,
            Text(corpus, recipes.base.seed),
            recipes.base,
            lambda step, _, loss: advance(step, f"loss {loss:.2f}"),
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
    """Tune whatever is not there yet; return every tune's key."""
    keys = {name: training_key(base_key, recipe) for name, recipe in recipes.tunes.items()}
    jobs: dict[str, Job] = {
        name: TuneJob(place.root / "base", place.root / name, recipe)
        for name, recipe in recipes.tunes.items()
    }
    steps = {name: recipe.steps for name, recipe in recipes.tunes.items()}
    for name in _run(place, "tuning", jobs, keys, steps):
        screen.wrote(place.root / name, recipes.tunes[name].summary())
    return keys


def _run(
    place: Place, what: str, jobs: dict[str, Job], keys: dict[str, str], steps: dict[str, int]
) -> list[str]:
    """Run the jobs whose outcome is not there yet, side by side; return their names."""
    missing = [name for name, key in keys.items() if place.built(name, key) is None]
    if not missing:
        screen.say(f"  {what}: all {len(jobs)} are there already, made from the same recipes and sources")
        return missing
    name_of = {jobs[name]: name for name in missing}
    total = sum(steps[name] for name in missing)

    def noted(job: Job) -> None:
        place.note(name_of[job], keys[name_of[job]], {})

    with screen.progress(f"{what}, {len(missing)} runs", total) as advance:
        for done in run_jobs(list(name_of), noted):
            advance(min(done, total), "")
    return missing


def write_probes(place: Place) -> str:
    """Write the held-out documents and the file that measures the reference tunes; return their key."""
    calibration = probe_file("demo-calibration", CALIBRATION, None)
    key = training_key(calibration, (HERE / "probes.py").read_text(encoding="utf-8"))
    if place.built("documents", key) is None:
        corpus = load_corpus()
        write_documents(place.documents, corpus, load_items(corpus)[1])
        place.calibration.write_text(calibration, encoding="utf-8")
        place.note("documents", key, {})
        screen.wrote(place.documents, f"{DOCUMENTS} held-out documents a domain, {CANARIES} canaries")
    register(place.calibration, force=True)
    return key


def measure_references(
    place: Place, recipes: Recipes, tune_keys: dict[str, str], documents_key: str
) -> list[Receipt]:
    """Audit every reference tune with nothing gated."""
    jobs: dict[str, Job] = {}
    keys = {}
    for tune in recipes.references:
        receipt = place.receipt(tune)
        name = receipt.relative_to(place.root).as_posix()
        keys[name] = measuring_key(tune_keys[tune], documents_key)
        jobs[name] = AuditJob(place.root / "base", place.root / tune, place.calibration, receipt)
    _run(place, "measuring", jobs, keys, dict.fromkeys(jobs, recipes.shape.num_hidden_layers))
    return [Receipt.load(place.receipt(tune)) for tune in recipes.references]


def write_policy(place: Place, recipes: Recipes, references: Sequence[Receipt]) -> bool:
    """Set the budgets and write probes.yaml; whether the file changed.

    Raises:
        DemoError: a reference tune is not healthy, so it cannot set budgets.
    """
    limits = damage_limits(references[0])
    for reference in references:
        reasons = unhealthy(reference, limits)
        if reasons:
            raise DemoError(f"{reference.path} cannot set budgets: {'; '.join(reasons)}")
    budgets = rewrite_budgets(references, recipes.shape.n_routed_experts)
    _show_policy(budgets, limits)
    seeds = [recipes.tunes[name].seed for name in recipes.references]
    text = probe_file("demo", policy_block(budgets, limits, seeds), limits.document)
    changed = not place.probes.exists() or place.probes.read_text(encoding="utf-8") != text
    if changed:
        place.probes.write_text(text, encoding="utf-8")
        screen.wrote(place.probes, "domains, budgets and where each comes from")
    return changed


def _show_policy(budgets: dict[str, Budget], limits: Limits) -> None:
    screen.console.print(screen.budget_table(budgets))
    screen.say(
        f"  damage: a domain may lose {limits.mean:g} nats per byte, a document {limits.document:g}"
        f" (a tenth and the whole of the base's document-to-document spread, {limits.spread:.3f})"
    )
