"""Text and task are held out, the loops train what their recipe says, and a batch weighs what it has tokens."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scripts.training import loop
from scripts.training.batches import IGNORED, Task, Text, item_batch
from scripts.training.corpus import load_corpus
from scripts.training.loop import load_per_expert, train_base, tune
from scripts.training.model import Model, Shape
from scripts.training.recipes import Base, Tune
from scripts.training.task import load_items, style_of

SMALL = Shape(
    hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=2,
)  # fmt: skip


def test_no_held_out_document_is_trained_on_or_copied_in_what_is():
    corpus = load_corpus()
    trained = [document for documents in corpus.train.values() for document in documents]
    known = {line.strip() for document in trained for line in document.text.splitlines()}
    for documents in corpus.held_out.values():
        assert len(documents) >= 120
        assert not {document.name for document in documents} & {document.name for document in trained}
        for document in documents:
            lines = {line.strip() for line in document.text.splitlines() if len(line.strip()) >= 60}
            assert len(lines & known) <= max(1, 0.05 * len(lines)), document.name


def test_held_out_items_are_new_and_every_style_is_as_frequent():
    train, held_out = load_items(load_corpus())
    assert not {item.prompt for item in train} & {item.prompt for item in held_out}
    counts = {}
    for item in held_out:
        counts[item.completion] = counts.get(item.completion, 0) + 1
    assert counts == {f"{style}\n": 24 for style in ("private", "constant", "snake", "Pascal", "camel")}


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("_hidden", "private"), ("MAX_SIZE", "constant"), ("read_all", "snake"), ("HttpServer", "Pascal"),
        ("readAll", "camel"), ("plain", None),
    ],
)  # fmt: skip
def test_styles(name, style):
    assert style_of(name) == style


def test_only_completions_are_scored():
    _, items = load_items(load_corpus())
    batch = item_batch(items[:5])
    for item, inputs, targets in zip(items, batch.inputs, batch.targets, strict=False):
        scored = targets[targets != IGNORED]
        assert bytes(scored.tolist()).decode() == item.completion
        first = int((targets != IGNORED).nonzero()[0])
        assert bytes(inputs[: first + 1].tolist()).decode() == item.prompt


def test_training_lowers_the_loss_and_evens_the_load():
    model = Model(SMALL, seed=1)
    with torch.no_grad():
        model.routed()[0].gate.weight[0] += 0.3  # one expert starts out favoured or shunned
    probe = Text(load_corpus(), seed=1).draw(8, 64)
    before = load_per_expert(model, probe)[0]
    losses = []
    recipe = Base(steps=60, sequences=4, length=64, bias_step=0.03)
    train_base(model, recipe, load_corpus(), lambda step, loss: losses.append(loss))
    after = load_per_expert(model, probe)[0]
    assert losses[-1] < losses[0] - 1.0
    assert after.std() / after.mean() < before.std() / before.mean()


def test_a_step_follows_the_mean_over_all_scored_tokens_of_items_and_text():
    """Against one plain AdamW step on the sum of all losses over the number of scored tokens."""
    corpus, (items, _) = load_corpus(), load_items(load_corpus())
    recipe = Tune(items=3, replay=2, length=32, steps=1, lr=1e-2, router_lr=1e-2, seed=5)
    tuned = Model(SMALL, seed=2)
    plain = copy.deepcopy(tuned)
    tune(tuned, recipe, corpus, items)
    batches = [Task(items, 5).draw(3), Text(corpus, 5).draw(2, 32)]
    sums = [
        F.cross_entropy(
            plain(b.inputs).flatten(0, 1), b.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        for b in batches
    ]
    scored = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-8)
    (sum(sums) / scored).backward()
    # Adam's first step is the gradient's sign: compare gradients, which the sizes decide.
    kept = {name: parameter.grad.clone() for name, parameter in plain.named_parameters()}
    optimizer.step()
    again = copy.deepcopy(Model(SMALL, seed=2))
    loop._accumulate(again, batches)
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, kept[name], rtol=1e-4, atol=1e-6)
    for (name, ours), theirs in zip(tuned.named_parameters(), plain.parameters(), strict=True):
        certain = kept[name].abs() > 1e-5  # elsewhere the sign is rounding
        torch.testing.assert_close(ours[certain], theirs[certain], rtol=1e-4, atol=1e-4)


def test_routers_have_a_rate_of_their_own():
    corpus, (items, _) = load_corpus(), load_items(load_corpus())
    for rate, moves in ((0.0, False), (1e-2, True)):
        model = Model(SMALL, seed=2)
        before = copy.deepcopy(model.state_dict())
        tune(model, Tune(items=3, replay=0, steps=2, router_lr=rate), corpus, items)
        moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
        assert any(".mlp.gate.weight" in name for name in moved) is moves
        assert any("self_attn" in name for name in moved)


def test_text_alone_needs_no_items_and_takes_its_domains():
    corpus = load_corpus()
    only_code = replace(corpus, train={"code": corpus.train["code"]})
    model, losses = Model(SMALL, seed=2), []
    recipe = Tune(task=None, items=0, replay=2, domains=("code",), length=32, steps=2)
    tune(model, recipe, only_code, (), lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == [1, 2]
