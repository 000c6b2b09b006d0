"""Join the processes that share an audit, or run in a single process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from moe_atlas.auditing.processes.group import Group
from moe_atlas.errors import AtlasError
from moe_atlas.options import Place


@contextlib.contextmanager
def joined(place: Place | None, *, cuda: bool = False) -> Iterator[Group]:
    """Provide the group of processes that share an audit; an error in one process ends all processes with it.

    After the context, several processes ignore SIGTERM. A launcher ends all processes when the first one exits, and the
    leader still has to print its result.
    """
    if place is None:
        yield Group()
        return
    from moe_atlas.auditing.processes.distributed import DistributedGroup  # torch.distributed imports slowly

    group = DistributedGroup(place, cuda=cuda)
    try:
        yield group
    except AtlasError as error:
        group.abandon(error)
        raise
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
