"""What a probe file may say beside a central policy: repeat it, leave it out, or guard more than it asks for.

A central policy binds `evaluation` and `protected_layers` even where it does not name them, to their safe values:
otherwise a probe file could keep every budget and read content drift off the expert that moved least, or guard one
layer. Whoever owns the policy leaves them to the probe file by name: ``free: [protected_layers, evaluation]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from moe_atlas.errors import InputRefused
from moe_atlas.probes.lock import differences
from moe_atlas.probes.reading.bounded_files import shown
from moe_atlas.probes.reading.collect import whole
from moe_atlas.probes.reading.fields import Fields
from moe_atlas.probes.reading.strict_yaml import Mapping, Node, Scalar
from moe_atlas.probes.settings.central import CentralPolicy

SAFE: dict[str, Node] = {"evaluation": Mapping({}, {}, 0), "protected_layers": Scalar("mid-band", 0)}
"""What a central policy binds to where it names nothing: the defaults of `evaluation`, and the middle of the model."""
STRICTER = {"protected_layers": ("all",)}
"""What a probe file may say beside a safe value, because it guards more."""


_SHOWN = 4  # differences in one message


class Described(Protocol):
    """A part of a probe file that can give itself back."""

    def describe(self) -> Any:
        """The part in the file's own spelling, defaults filled in."""


Part = TypeVar("Part", bound=Described)


def governed(
    fields: Fields,
    key: str,
    central: CentralPolicy | None,
    read: Callable[[Node, str], Part],
    default: Node | None = None,
) -> Part:
    """Return a part of the probe file, as the central policy lets it be.

    Args:
        fields: the probe file.
        key: `policy`, `evaluation` or `protected_layers`.
        central: the central policy; None where nothing governs.
        read: reads the part from a node of a file of that name.
        default: what stands for a part that the probe file leaves out or nulls; None where it must be written.

    Raises:
        InputRefused: E_POLICY where the probe file says anything else; what `read` refuses.
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
    """Name both values, and who may change that."""
    where = f"{fields.file}:{fields.line_of(key)}"
    owner = f"the central policy {shown(central.name)} ({central.file})"
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
    return value if isinstance(value, str) else shown(json.dumps(value), 120).strip("'")
