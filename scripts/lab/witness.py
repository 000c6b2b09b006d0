"""Theorem 2 made visible: two checkpoints that no output tells apart, on both sides of the refinement margin.

Only the last routed layer's down-projections move, so no routing depends on them and the outputs are smooth in
them. A random direction is made orthogonal to the gradients of the three domains' NLL; two steps along it lie on
either side of the margin; a Newton iteration along those gradients brings the second onto the first one's level set.

Shape legend: W windows, P parameters, D domains.

Example: python -m scripts.lab.witness
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_atlas.api import AuditOptions, Receipt, audit
from moe_atlas.probes.registration import load_registered, register
from scripts.coverage.page import replace_section
from scripts.lab.audits import prepare, probe_text
from scripts.lab.corpus import DOMAINS
from scripts.lab.families import FAMILIES, Family, widened
from scripts.training.checkpoint import Tensors, read, split_experts, write

ROOT = Path("lab")
FAMILY = "deepseek_v3"
SIDES = (0.95, 1.05)  # the two steps, relative to where the margin is zero
SIZE = 0.25  # of the moved tensor's norm: how far the middle lies from the base
ITERATIONS = 8
TOLERANCE = 1e-8  # nats, of the Newton iteration in float64


class LevelSet:
    """The NLL of every domain as a function of one tensor, and its gradients."""

    def __init__(self, model: Any, moved: Tensor, tokens_DWS: list[Tensor]) -> None:
        self.model, self.moved, self.tokens_DWS = model, moved, tokens_DWS
        self.start = moved.detach().clone()

    def put(self, shift: Tensor) -> None:
        """Move the tensor to its start plus a shift."""
        with torch.no_grad():
            self.moved.copy_(self.start + shift)

    def nll(self) -> list[Tensor]:
        """Mean next-token NLL of each domain, nats, with a graph."""
        out = []
        for tokens_WS in self.tokens_DWS:
            logits = self.model(tokens_WS[:, :-1]).flatten(0, 1)
            out.append(F.cross_entropy(logits, tokens_WS[:, 1:].flatten()))
        return out

    def values(self, shift: Tensor) -> Tensor:
        """The domains' NLL at a shift, float64 [D]."""
        self.put(shift)
        with torch.no_grad():
            return torch.stack(self.nll())

    def gradients(self, shift: Tensor) -> Tensor:
        """The gradients at a shift, float64 [D, P]."""
        self.put(shift)
        rows = [torch.autograd.grad(value, self.moved)[0].flatten() for value in self.nll()]
        return torch.stack(rows)


def level_pair(level: LevelSet, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two shifts with equal NLL in every domain, the second further out by a tenth."""
    generator = torch.Generator().manual_seed(seed)
    gradients_DP = level.gradients(torch.zeros_like(level.start))
    direction = torch.randn(level.start.shape, generator=generator, dtype=torch.float64).flatten()
    basis, _ = torch.linalg.qr(gradients_DP.T)
    direction = direction - basis @ (basis.T @ direction)
    direction *= SIZE * level.start.norm() / direction.norm()
    near, far = (side * direction.view_as(level.start) for side in SIDES)
    target = level.values(near)
    for _ in range(ITERATIONS):
        error_D = level.values(far) - target
        if float(error_D.abs().max()) < TOLERANCE:
            break
        gradients_DP = level.gradients(far)
        step_D = torch.linalg.solve(gradients_DP @ gradients_DP.T, error_D)
        far = far - (gradients_DP.T @ step_D).view_as(far)
    return near, far


def probe_file(folder: Path, tau: float) -> Path:
    """The lab's probe with only the refinement margin, the content channel and the damage registered."""
    text = probe_text().replace("tau: 1}", f"tau: {tau:.6g}}}").replace("content: null", "content: 0.9")
    text = text.replace(
        "{nll: null, document_nll: null, document_share: null}",
        "{nll: 0.5, document_nll: 3, document_share: 0.15}",
    )
    path = folder / "probes-witness.yaml"
    path.write_text(text, encoding="utf-8")
    register(path, force=True)
    return path


def checkpoint(family: Family, base: Tensors, name: str, tensor: Tensor, folder: Path) -> None:
    """The base in float32 with one fused tensor replaced."""
    tensors = {key: value.float() for key, value in base.items()} | {
        key: value.float().contiguous() for key, value in split_experts(f"model.{name}", tensor).items()
    }
    write(tensors, family.config, folder)


def main() -> None:
    """Build the pair, register tau between them, audit both, and write the table."""
    torch.set_num_threads(1)
    family = FAMILIES[FAMILY]
    base = read(ROOT / family.name / "base")
    model = widened(family, base).double()
    name = f"layers.{family.layers[-1]}.mlp.down_proj"
    probes = load_registered(prepare(ROOT))
    tokens_DWS = [
        torch.stack([torch.as_tensor(w.tokens) for w in probes.windows if w.domain == number])
        for number in range(len(DOMAINS))
    ]
    level = LevelSet(model, dict(model.named_parameters())[name], tokens_DWS)
    shifts = level_pair(level)
    place = ROOT / "witness"
    checkpoint(family, base, name, level.start, place / "base")
    for side, shift in zip("AB", shifts, strict=True):
        checkpoint(family, base, name, level.start + shift, place / side)
    loads = [_audit(place, side, probe_file(ROOT / "probe", 0.9)) for side in "AB"]
    tau = sum(0.9 - receipt.body["margins"]["refinement_margin"]["estimate"] for receipt in loads) / 2
    found = {side: _audit(place, side, probe_file(ROOT / "probe", tau)) for side in "AB"}
    replace_section(Path("docs/lab.md"), "witness", section(found, tau))


def _audit(place: Path, side: str, probe: Path) -> Receipt:
    options = AuditOptions(dtype="float32", threads=1)
    receipt = place / f"{side}.json"
    return audit(place / "base", place / side, probe, receipt=receipt, force=True, options=options)


def section(found: dict[str, Receipt], tau: float) -> str:
    """The table of both audits."""
    lines = ["| | A | B | B - A |", "|---|---|---|---|"]
    for number, domain in enumerate(DOMAINS):
        a, b = (found[side].body["domains"][number]["nll_tuned"]["estimate"] for side in "AB")
        lines.append(f"| NLL {domain}, nats per byte | {a:.7f} | {b:.7f} | {b - a:+.1e} |")
    for key in ("content_drift", "boundary_drift"):
        a, b = (max(layer["pair"][key]["estimate"] for layer in found[side].body["layers"]) for side in "AB")
        lines.append(f"| largest {key} | {a:.4f} | {b:.4f} | {b - a:+.1e} |")
    margins = [found[side].body["margins"]["refinement_margin"] for side in "AB"]
    shown = [f"{m['estimate']:+.4f} [{m['low']:+.4f}, {m['high']:+.4f}]" for m in margins]
    lines.append(f"| refinement margin, tau {tau:.4f} | {shown[0]} | {shown[1]} | |")
    outcomes = [found[side].body["predicates"]["protected_atlas_rewrite"]["outcome"] for side in "AB"]
    lines.append(f"| protected atlas | {outcomes[0]} | {outcomes[1]} | |")
    verdicts = [found[side].body["verdict"] for side in "AB"]
    lines.append(f"| verdict | {verdicts[0]} | {verdicts[1]} | |")
    return "Command: `python -m scripts.lab.witness` (after `make lab`).\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
