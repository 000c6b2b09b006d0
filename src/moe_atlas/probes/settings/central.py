"""A policy that a project's own probe file cannot widen (schema ``atlas/policy/v1``).

The gate's owner keeps one central policy file. A probe file registered under it takes policy, protected layers and
evaluation from the central file. The central file binds the latter two even if it does not name them (`governed`),
unless it frees them. The lock and every receipt name the central file and its digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_atlas.errors import UsageError
from moe_atlas.probes.reading.bounded_files import read_bounded, sha256_hex
from moe_atlas.probes.reading.collect import attempt, together
from moe_atlas.probes.reading.fields import Fields
from moe_atlas.probes.reading.strict_yaml import MAX_BYTES, Node, parse
from moe_atlas.text import not_there

SCHEMA = "atlas/policy/v1"
GOVERNED = ("policy", "protected_layers", "evaluation")
FREEABLE = ("protected_layers", "evaluation")


@dataclass(frozen=True)
class CentralPolicy:
    """A central policy file.

    Attributes:
        file: the file's name, for messages.
        name: the policy's own name.
        sha256: digest of the file's bytes.
        entries: the nodes of the keys it governs, not yet read: their meaning may depend on the probe file's domains.
        free: the keys that the policy leaves to the probe file.
    """

    file: str
    name: str
    sha256: str
    entries: dict[str, Node]
    free: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return the entry of locks and receipts on the policy."""
        return {"name": self.name, "sha256": self.sha256}


def load_central(path: Path) -> CentralPolicy:
    """Read a central policy file.

    Raises:
        UsageError: E_POLICY_MISSING when there is no such file.
        InputRefused: E_PROBE_FILE (not a regular file, too long), E_PROBE_YAML, E_PROBE_KEY, E_PROBE_VALUE.
    """
    if not path.exists():
        raise UsageError("E_POLICY_MISSING", str(path), not_there(path, "there is no such policy file"))
    text = read_bounded(path, MAX_BYTES, "E_PROBE_FILE")
    root = parse(text, path.name)
    with together():
        fields = Fields(root, "", path.name, ("schema", "name", *GOVERNED, "free"))
        fields.text("schema", (SCHEMA,))
        attempt(lambda: fields.get("policy"))
        entries = {key: fields.get(key) for key in GOVERNED if fields.has(key)}
        free = fields.names("free", FREEABLE, "part that a policy can free")
        for key in free:
            if key in entries:
                fields.refuse(fields.line_of("free"), f"free names {key}, which the policy itself sets")
        return CentralPolicy(path.name, fields.text("name"), sha256_hex(text), entries, free)
