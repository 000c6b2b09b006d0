"""Join the processes that share an audit, or work alone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from moe_atlas.auditing.processes.group import Group
from moe_atlas.errors import AtlasError
from moe_atlas.options import Place


@contextlib.contextmanager
def joined(place: Place | None, *, cuda: bool = False) -> Iterator[Group]:
    """The processes that share the audit inside; an error of one of them ends all of them with it.

    From its end on SIGTERM is ignored where there are several: a launcher ends them all as soon as the first leaves,
    and the leader still has something to say.
    """
    if place is None:
        yield Group()
        return
    from moe_atlas.auditing.processes.distributed import Ranks  # importing torch.distributed takes long

    ranks = Ranks(place, cuda=cuda)
    try:
        yield ranks
    except AtlasError as error:
        ranks.abandon(error)
        raise
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
