"""The figures as the Markdown tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Results = dict[str, Any]
Row = tuple[str, str, str]


def render(results: Results) -> str:
    """Tables of what was measured; a part that was not run has no row."""
    rows = list(comparisons(results))
    lines = [
        f"Machine: {results.get('machine', 'unknown')}.",
        "",
        *table(("figure", "measured", "target"), rows),
    ]
    runs = [(name, run) for name, run in timed(results)]
    if runs:
        head = ("run", "seconds", "peak GB", "GB read")
        lines += [
            "",
            *table(
                head, [(n, f"{r['seconds']:.1f}", gb(r["peak"]), gb(r.get("bytes_read"))) for n, r in runs]
            ),
        ]
    phases = results.get("full", {}).get("phases", {})
    if phases:
        total = results["full"]["seconds"]
        shares = [(name, f"{value:.1f}", f"{value / total:.0%}") for name, value in phases.items()]
        lines += ["", "Phases of the full pair's audit:", "", *table(("phase", "seconds", "share"), shares)]
    if "ceiling" in results:
        lines += [
            "",
            "Ceilings of the machine:",
            "",
            *table(("ceiling", "rate", ""), list(limits(results["ceiling"]))),
        ]
    return "\n".join(lines) + "\n"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table, line by line."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows)]


def timed(results: Results) -> Iterator[tuple[str, Results]]:
    """Every run with a time and a peak."""
    names = {
        "peer": "transformers, both checkpoints",
        "full": "audit, every tensor moved",
        "aa": "audit, A/A",
    }
    for key, name in names.items():
        if key in results:
            yield name, results[key]
    frozen = {"all": "audit, routed object frozen", "upper": "audit, only the upper half's attention moved"}
    for key, run in results.get("frozen", {}).items():
        yield frozen[key], run
    if "io" in results:
        yield "audit, one short window, cold cache", results["io"]
    if "ranks" in results:
        yield "audit, every tensor moved, by two processes (the busier one)", results["ranks"]


def comparisons(results: Results) -> Iterator[Row]:
    """The ratios that the engine is judged by."""
    full, peer = results.get("full"), results.get("peer")
    if full and peer:
        yield (
            "pair audit ÷ transformers loading and running both",
            f"{full['seconds'] / peer['seconds']:.2f}",
            "≤ 0.6",
        )
    if full and "plan" in full and "ceiling" in results:
        yield from against_plan(full, results["ceiling"])
    if "io" in results:
        ratio = results["io"]["seconds"] / results["io"]["read_and_hash"]
        yield "I/O-bound audit ÷ reading and hashing the same bytes", f"{ratio:.2f}", "≤ 1.2"
    if full:
        yield "peak memory of the pair audit", f"{gb(full['peak'])} GB", "≤ 1.5 GB"
    if "memory" in results:
        peaks = ", ".join(gb(peak) for peak in results["memory"]["peak"])
        depths = ", ".join(map(str, results["memory"]["layers"]))
        slope = f"{results['memory']['bytes_per_layer'] / 1e6:+.1f} MB a layer"
        yield f"peak memory over {depths} layers", f"{peaks} GB ({slope})", "≈ 0 a layer"
    if full:
        for name, run in timed(results):
            if "frozen" in name or "A/A" in name:
                target = "≤ 0.65" if "frozen" in name else "≤ 0.6"
                yield f"{name} ÷ every tensor moved", f"{run['seconds'] / full['seconds']:.2f}", target
    for key, unit in (("scaling", "1000 tokens"), ("memory", "layer")):
        if key in results:
            fit, scale = results[key]["time"], 1000 if key == "scaling" else 1
            value = f"{fit['slope'] * scale:.2f} s, R² {fit['r2']:.4f}"
            yield f"time per {unit}", value, "linear"
    if "ranks" in results:
        share = max(results["ranks"]["bytes_per_rank"]) / results["ranks"]["bytes_alone"]
        yield "bytes read by the busier of 2 processes ÷ one process", f"{share:.2f}", "≤ 0.55"
        ratio = results["ranks"]["seconds"] / results["ranks"]["seconds_alone"]
        yield "2 processes of 1 thread ÷ one process of 2 threads, seconds", f"{ratio:.2f}", "1"


def against_plan(full: Results, ceiling: Results) -> Iterator[Row]:
    """Compute phases against the ceiling for the counted work, and the predicted against the measured time."""
    plan, phases = full["plan"], full["phases"]
    total = plan["flops"]["total"]
    floor = total / ceiling[f"flops_{plan['dtype']}"]
    share = floor / sum(phases[name] for name in ("attention and routing", "experts", "output"))
    yield f"GEMM ceiling for {total / 1e12:.1f} TFLOP ÷ compute phases", f"{share:.0%}", "≥ 65 %"
    yield "predicted ÷ measured seconds", f"{plan['seconds']['total'] / full['seconds']:.2f}", "1"
    yield "predicted ÷ measured peak memory", f"{plan['memory']['peak'] / full['peak']:.2f}", "1"


def limits(ceiling: Results) -> Iterator[Row]:
    """The machine's own rates."""
    yield "bfloat16 products", f"{ceiling['flops_bfloat16'] / 1e9:.0f} GFLOP/s", ""
    yield "float32 products", f"{ceiling['flops_float32'] / 1e9:.0f} GFLOP/s", ""
    yield "reading, cold", f"{ceiling['read_cold'] / 1e9:.2f} GB/s", ""
    yield "reading, page cache", f"{ceiling['read_cached'] / 1e9:.2f} GB/s", ""
    yield "sha256, one core", f"{ceiling['sha256'] / 1e9:.2f} GB/s", ""


def gb(count: float | None) -> str:
    """Decimal gigabytes."""
    return "" if count is None else f"{count / 1e9:.2f}"
