"""Hold a probe file against the central policy that governs it.

A probe file may repeat a governed part, leave it out, or guard more than the central policy asks for. A central policy
binds `evaluation` and `protected_layers` to their safe values even if it does not name them. Otherwise a probe file
could keep every budget and still measure content drift on the expert that moved least, or guard a single layer. The
policy's owner can leave either part to the probe file by name: ``free: [protected_layers, evaluation]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from moe_atlas.errors import InputRefused
from moe_atlas.probes.lock import differences
from moe_atlas.probes.reading.collect import whole
from moe_atlas.probes.reading.fields import Fields
from moe_atlas.probes.reading.strict_yaml import Mapping, Node, Scalar
from moe_atlas.probes.settings.central import CentralPolicy
from moe_atlas.text import quoted

SAFE: dict[str, Node] = {"evaluation": Mapping({}, {}, 0), "protected_layers": Scalar("mid-band", 0)}
"""Value of each part that the central policy does not name: the defaults of `evaluation`, the middle of the model."""
STRICTER = {"protected_layers": ("all",)}
"""Values that a probe file may write instead of a safe value, because they guard more."""


_SHOWN = 4  # differences in one message


class Described(Protocol):
    """A part of a probe file that can describe itself in the file's spelling."""

    def describe(self) -> Any:
        """Return the part in the file's own spelling, defaults filled in."""


Part = TypeVar("Part", bound=Described)


def governed(
    fields: Fields,
    key: str,
    central: CentralPolicy | None,
    read: Callable[[Node, str], Part],
    default: Node | None = None,
) -> Part:
    """Read a part of the probe file and check that the central policy permits it.

    Args:
        fields: the probe file.
        key: `policy`, `evaluation` or `protected_layers`.
        central: the central policy; None if the probe file has none.
        read: reads the part from a node of a file of that name.
        default: node to read if the probe file leaves the part out or nulls it; None if the part is required.

    Raises:
        InputRefused: E_POLICY if the central policy does not permit the part; every refusal of `read`.
    """
    own = default if default is not None and fields.is_null(key) else None
    if central is None or key in central.free:
        return read(own or fields.get(key), fields.file)
    named = key in central.entries
    ruling = whole(
        lambda: read(central.entries[key], central.file) if named else read(SAFE[key], fields.file)
    )
    if not fields.has(key):
        return ruling
    found = whole(lambda: read(own or fields.get(key), fields.file))
    if found.describe() == ruling.describe() or (not named and found.describe() in STRICTER.get(key, ())):
        return found
    _refuse(fields, key, central, found.describe(), ruling.describe(), named)


def _refuse(
    fields: Fields, key: str, central: CentralPolicy, found: Any, ruling: Any, named: bool
) -> NoReturn:
    """Refuse the part with both values and with the file whose owner may change it."""
    where = f"{fields.file}:{fields.line_of(key)}"
    owner = f"the central policy {quoted(central.name)} ({central.file})"
    if not named:
        problem = f"{key} is {_spelled(found)}, and {owner} leaves it at {_spelled(ruling)}"
        step = (
            f"leave {key} out, or let the policy's owner write {key}, or free: [{key}], into {central.file}"
        )
        raise InputRefused("E_POLICY", where, problem, step)
    if isinstance(found, dict) and isinstance(ruling, dict):
        values = "; ".join(differences(ruling, found, key, ("there", "here"))[:_SHOWN])
    else:
        values = f"there {_spelled(ruling)}, here {_spelled(found)}"
    problem = f"{key} is not that of {owner}: {values}"
    raise InputRefused(
        "E_POLICY", where, problem, f"leave {key} out of the probe file, or repeat it as it is there"
    )


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else quoted(json.dumps(value), 120).strip("'")
