"""A receipt as a Python object: verdict, arrays, tables and displays. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moe_atlas.errors import VERDICT_EXIT, UsageError
from moe_atlas.receipt.files import token_path
from moe_atlas.receipt.token_file import recorded_tokens
from moe_atlas.receipt.verify import intact_receipt
from moe_atlas.receipt.window_file import recorded_windows
from moe_atlas.text import shown
from moe_atlas.views.receipt import ReceiptView
from moe_atlas.views.view import View

if TYPE_CHECKING:
    import pandas as pd

Table = Literal["layers", "domains", "evidence", "claims", "weights"]
TABLES: tuple[Table, ...] = ("layers", "domains", "evidence", "claims", "weights")
BOUNDS = ("estimate", "low", "high")


@dataclass(frozen=True)
class Receipt:
    """A receipt on disk whose numbers follow from its window data.

    Attributes:
        path: path of the receipt; the window data are beside it.
        body: content of the receipt, as the receipt format documents it.
    """

    path: Path
    body: dict[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Receipt:
        """Read a receipt and derive every number again from its window data.

        Raises:
            IntegrityError: E_RECEIPT if the receipt and its window data disagree.
        """
        return cls(Path(path), intact_receipt(Path(path)))

    @property
    def view(self) -> ReceiptView:
        """The content with its types."""
        return ReceiptView(self.body)

    @property
    def verdict(self) -> str | None:
        """The verdict `pass`, `fail` or `inconclusive`; None for a baseline, which tests nothing."""
        return self.view.verdict

    @property
    def qualified(self) -> list[str]:
        """What restricts the meaning of the verdict, by code, such as ``damage-only``; usually empty."""
        return list(self.view.qualified)

    @property
    def exit_code(self) -> int:
        """The exit code of the command that writes this receipt."""
        return int(VERDICT_EXIT[self.verdict])

    @property
    def layers(self) -> list[int]:
        """The model's 0-based indices of the routed layers, in order."""
        return [layer.layer for layer in self.view.layers]

    def layer_array(self, key: str) -> NDArray[np.float64]:
        """Return one interval of every routed layer, float64 [L, 3]: estimate, low, high; NaN where undefined.

        Args:
            key: a dotted key, such as ``pair.boundary_drift``, ``tuned.overlap`` or
                ``pair.perturbation_budget.ratio``.

        Raises:
            UsageError: E_KEY if no layer has this key.
        """
        found = [_at(layer.facts, key) for layer in self.view.layers]
        if all(value is None for value in found):
            problem = "is no key of this receipt's layers"
            raise UsageError("E_KEY", shown(key), problem, "see the keys of `layers` in the receipt's schema")
        return np.array([_triple(value) for value in found], dtype=np.float64)

    def windows(self) -> dict[str, NDArray[Any]]:
        """Return the window arrays by name, float64 or int32; the errors are those of `recorded_windows`."""
        return dict(recorded_windows(self.path, self.body))

    def tokens(self) -> dict[str, NDArray[Any]] | None:
        """Return the token arrays by name, None if the audit kept none; the errors are those of `recorded_tokens`."""
        return recorded_tokens(self.path, self.body)

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Return a table as a list of rows; an interval ``x`` has three columns: ``x``, ``x_low`` and ``x_high``.

        Args:
            table: ``layers``, ``domains``, ``evidence``, ``claims`` or ``weights``.

        Raises:
            UsageError: E_TABLE for any other name.
        """
        if table not in TABLES:
            raise UsageError("E_TABLE", shown(str(table)), "is no table", f"give one of {', '.join(TABLES)}")
        if table == "evidence":
            return [
                {"predicate": name, **line.facts}
                for name, predicate in self.view.predicates.items()
                for line in predicate.evidence
            ]
        if table == "weights":
            classes = (self.view.weights and self.view.weights.classes) or {}
            return [{"class": name, **_flat(entry.facts)} for name, entry in classes.items()]
        rows: Mapping[str, Sequence[View]] = {
            "layers": self.view.layers,
            "domains": self.view.domains,
            "claims": self.view.claims,
        }
        return [_flat(row.facts) for row in rows[table]]

    def frame(self, table: Table) -> pd.DataFrame:
        """Return a table as a pandas data frame; columns and errors are those of `rows`.

        Raises:
            UsageError: E_PANDAS if pandas is not installed.
        """
        rows = self.rows(table)
        try:
            import pandas as pd
        except ImportError as error:
            raise UsageError(
                "E_PANDAS", "pandas", "is not installed", "pip install pandas, or use rows()"
            ) from error
        return pd.DataFrame(rows)

    def report(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write a report; the suffix selects the format: ``.html``, ``.md``, ``.xml`` (JUnit) or ``.json``.

        Raises:
            UsageError: E_FORMAT, E_EXISTS or E_NO_FOLDER.
            ResourceExhausted: E_WRITE.
        """
        from moe_atlas.report.formats.outputs import outputs

        target = Path(path)
        reserved = (self.path, self.path.parent / self.view.evidence.windows, token_path(self.path))
        outputs(paths=[target], force=force, reserved=reserved).write(self.body, self.path)
        return target

    def __repr__(self) -> str:
        outcomes = ", ".join(f"{name}: {found.outcome}" for name, found in self.view.predicates.items())
        qualified = f" {self.qualified}" if self.qualified else ""
        return f"Receipt({str(self.path)!r}, verdict={self.verdict!r}{qualified}, {outcomes})"

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows: verdict, reasons and outcomes, without style sheet or script."""
        from moe_atlas.report.html.page import notebook
        from moe_atlas.report.opening import opened

        return notebook(opened(self.body, self.path), self.path)


def _at(layer: Mapping[str, Any], key: str) -> Any:
    value: Any = layer
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _triple(value: Any) -> list[float]:
    """Return estimate, low and high; a plain number has only an estimate."""
    parts = [value.get(bound) for bound in BOUNDS] if isinstance(value, Mapping) else [value, None, None]
    return [float(part) if isinstance(part, int | float) else float("nan") for part in parts]


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested facts to one row: an interval gives three columns, other objects dotted names, lists nothing."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "estimate" in value:
            out |= {
                name: value["estimate"],
                f"{name}_low": value.get("low"),
                f"{name}_high": value.get("high"),
            }
        elif isinstance(value, Mapping):
            out |= _flat(value, f"{name}.")
        elif not isinstance(value, list):
            out[name] = value
    return out
