"""A receipt in a terminal: the verdict and why, the evidence, what to do next. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moe_atlas.channels import CHANNEL, GATED, Channel
from moe_atlas.report import figures, words
from moe_atlas.report.console.screen import Fitted
from moe_atlas.report.head import head
from moe_atlas.report.yardstick import copies
from moe_atlas.text import number, shown
from moe_atlas.views.judged import PredicateView
from moe_atlas.views.measured import LayerView
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.registered import Policy

STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow", None: "bold cyan"}
RESULTS = {
    "pass": "green",
    "fail": "red",
    "undetermined": "yellow",
    "not-gated": "cyan",
    "likely cause": "bold",
}
COLUMNS = tuple(channel for channel in GATED if channel.short)
LAYERS_SHOWN = 12
REASONS_SHOWN = 6


def render(receipt: ReceiptView, console: Console) -> None:
    """Print a receipt."""
    console.print(Group(*sections(receipt)))


def sections(receipt: ReceiptView) -> Iterator[RenderableType]:
    """The parts of the terminal report, in reading order."""
    yield headline(receipt)
    yield from opening(receipt)
    for warning in receipt.warnings:
        yield Text(f"warning: {shown(warning.message, 300)}", style="yellow")
    if receipt.is_baseline:
        yield baseline_table(receipt)
        yield from lineage(receipt)
    else:
        yield predicate_table(receipt)
        yield layer_table(receipt)
        yield domain_table(receipt)
    for step in receipt.next_steps[:3]:
        yield Text(f"next: {words.next_step(step)}")


def headline(receipt: ReceiptView) -> Text:
    """Verdict, what was compared, and on how much."""
    verdict = receipt.verdict
    word = "BASELINE RECORDED" if receipt.is_baseline else words.verdict(receipt)
    text = Text(f" {word} ", style=f"{STYLES.get(verdict, 'bold')} reverse")
    probe = shown(receipt.probe.name)
    return text.append(f"  {words.names(receipt)}   probe {probe}: {words.sample(receipt)}", style="default")


def lineage(receipt: ReceiptView) -> Iterator[Text]:
    """That a resumed checkpoint is the one that an earlier receipt saw; the warnings say what is not."""
    earlier = receipt.parent.receipt if receipt.parent else None
    if earlier is not None and earlier.same_tensors:
        yield Text("resumed: every tensor holds the values of the earlier receipt's", style="green")


def opening(receipt: ReceiptView) -> Iterator[RenderableType]:
    """The likely cause, the change of loss, the gates that decided, and what the verdict does not speak of."""
    for said in head(receipt, REASONS_SHOWN):
        yield Padding.indent(Text(said.line, style=RESULTS.get(said.result or said.title, "")), 2)


def predicate_table(receipt: ReceiptView) -> Table:
    """The three predicates with the line of evidence that matters most."""
    table = Table(title="Predicates", title_justify="left", expand=False)
    for column in ("predicate", "outcome", "what decided"):
        table.add_column(column, overflow="fold")
    for name, predicate in receipt.predicates.items():
        passed = {True: "green", False: "red", None: "yellow"}[predicate.passed]
        sentence = _telling(predicate)
        table.add_row(words.PREDICATES[name], Text(predicate.outcome, style=passed), Text(sentence))
    return table


def _telling(predicate: PredicateView) -> str:
    """Of a pass the line nearest to its budget that has an interval to show; else the worst that is no pass."""
    wanted = ("pass",) if predicate.passed else ("fail", "undetermined")
    lines = [line for line in predicate.evidence if line.result in wanted]
    measured = [line for line in lines if line.low is not None and line.high is not None]
    worst = next(iter(measured if predicate.passed and measured else lines), None)
    return words.gate_sentence(worst) if worst else shown(predicate.reason or "–", 300)


def layer_table(receipt: ReceiptView) -> Fitted:
    """Every channel of the worst layers, protected ones marked; budgets in the last row."""
    policy = receipt.probe.policy
    layers = sorted(receipt.layers, key=lambda layer: -_worst(layer, policy))
    said = "; ×: of a 4-bit copy's" if receipt.yardstick else ""
    title = f"Layers, worst first (* protected; against the budget, upper bound{said})"
    table = Table(title=title, title_justify="left", expand=False)
    for column in ("layer", *(channel.short for channel in COLUMNS), "dead", "margin"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers[:LAYERS_SHOWN]:
        cells = [_channel(layer, channel, policy) for channel in COLUMNS]
        mark = "*" if layer.protected else " "
        table.add_row(
            f"{layer.layer}{mark}", *cells, _change(layer, "dead_experts"), _change(layer, "set_margin")
        )
    table.add_section()
    limits = (number(policy.budget(channel.budget)) for channel in COLUMNS)
    table.add_row("budget", *limits, "", "", style="dim")
    if len(layers) > LAYERS_SHOWN:
        table.caption = f"{len(layers) - LAYERS_SHOWN} more layers in the receipt"
    expendable = ("entropy_drop", "overlap_drop", "expert_content", "transition_drift")
    return Fitted(table, ("margin", "dead", *(CHANNEL[key].short for key in expendable)))


def _channel(layer: LayerView, channel: Channel, policy: Policy) -> Text:
    value, budget = layer.channel(channel.key), policy.budget(channel.budget)
    high = value.high if value else None
    over = budget is not None and high is not None and high >= budget
    return Text(
        f"{number(words.estimate(value))}{copies(value)}", style="red" if over and layer.protected else ""
    )


def _change(layer: LayerView, key: str) -> str:
    sides = (layer.base, layer.tuned)
    values = [number(words.estimate(side.interval(key) if side else None)) for side in sides]
    return "→".join(values)


def _worst(layer: LayerView, policy: Policy) -> float:
    ratios = [0.0]
    for channel in COLUMNS:
        value, budget = layer.channel(channel.key), policy.budget(channel.budget)
        if budget and value is not None and value.high is not None:
            ratios.append(value.high / budget)
    return max(ratios) + (1000.0 if layer.protected else 0.0)


def domain_table(receipt: ReceiptView) -> Fitted:
    """NLL of every domain before and after, and the paired increase."""
    title = f"Domains (NLL, {figures.unit(receipt)})"
    table = Table(title=title, title_justify="left", expand=False)
    for column in ("domain", "role", "documents", "base", "tuned", "increase", "KL", "top-1 agreement"):
        table.add_column(column, justify="left" if column in ("domain", "role") else "right", no_wrap=True)
    for domain in receipt.domains:
        table.add_row(
            Text(shown(domain.name)),
            domain.role,
            str(domain.documents),
            number(words.estimate(domain.nll_base), 4),
            number(words.estimate(domain.nll_tuned), 4),
            f"{words.spelled(domain.nll_increase)}{copies(domain.nll_increase)}",
            f"{number(words.estimate(domain.kl))}{copies(domain.kl)}",
            number(words.estimate(domain.top1_agreement)),
        )
    return Fitted(table, ("top-1 agreement", "KL", "role", "documents"))


def baseline_table(receipt: ReceiptView) -> Table:
    """The state of a baseline: occupancy, overlap and margin of every routed layer."""
    keys = ("overlap", "set_margin", "load_entropy", "load_cv", "dead_experts")
    table = Table(title="State of the atlas (* protected)", title_justify="left", expand=False)
    for column in ("layer", *keys):
        table.add_column(column.replace("_", " "), justify="right")
    for layer in receipt.layers:
        mark = "*" if layer.protected else " "
        cells = [words.spelled(layer.base.interval(key) if layer.base else None) for key in keys]
        table.add_row(f"{layer.layer}{mark}", *cells)
    return table
