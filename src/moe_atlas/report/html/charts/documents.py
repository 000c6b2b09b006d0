"""What each document of a domain lost: the distribution behind a mean change of loss.

Shape legend: W windows, C documents of one domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_atlas.receipt.window_file import recorded_windows
from moe_atlas.views.measured import DomainRow
from moe_atlas.views.receipt import ReceiptView

Arrays = Mapping[str, NDArray[Any]]
NEEDED = ("output.nll_base", "output.nll_tuned", "windows.domain", "windows.document")


@dataclass(frozen=True)
class Documents:
    """The documents of one domain that have a finite change of loss.

    Attributes:
        domain: the domain.
        numbers_C: their numbers, int [C].
        increase_C: mean increase of the loss over the windows of each, nats a token, float64 [C].
        broken: documents without a finite change.
    """

    domain: DomainRow
    numbers_C: NDArray[Any]
    increase_C: NDArray[np.float64]
    broken: int

    def worst(self, most: int) -> list[tuple[int, float]]:
        """Return the documents that lost most, worst first, as number and increase."""
        order = np.argsort(-self.increase_C, kind="stable")[:most]
        return [(int(self.numbers_C[at]), float(self.increase_C[at])) for at in order]


def windows_beside(receipt: ReceiptView, path: Path) -> Arrays | None:
    """Return the window data of a receipt; None where the receipt stands alone.

    Raises:
        AtlasError: as `recorded_windows`, where the window data are there and not those of the receipt.
    """
    if not path.with_name(receipt.evidence.windows).is_file():
        return None
    return recorded_windows(path, dict(receipt.facts))


def by_domain(receipt: ReceiptView, windows: Arrays | None) -> Iterator[Documents]:
    """What each document lost, for every domain of a pair; nothing where no window data are at hand."""
    if windows is None or receipt.is_baseline or any(name not in windows for name in NEEDED):
        return
    with np.errstate(invalid="ignore"):
        increase_W = np.asarray(windows["output.nll_tuned"] - windows["output.nll_base"], dtype=np.float64)
    for number, domain in enumerate(receipt.domains):
        chosen_W = windows["windows.domain"] == number
        yield _documents(domain, windows["windows.document"][chosen_W], increase_W[chosen_W])


def _documents(domain: DomainRow, document_W: NDArray[Any], increase_W: NDArray[np.float64]) -> Documents:
    numbers_C, place_W = np.unique(document_W, return_inverse=True)
    with np.errstate(invalid="ignore"):
        mean_C = np.bincount(place_W, increase_W, len(numbers_C)) / np.bincount(
            place_W, minlength=len(numbers_C)
        )
    finite_C = np.isfinite(mean_C)
    return Documents(domain, numbers_C[finite_C], mean_C[finite_C], int((~finite_C).sum()))
