"""End a child process when its parent process ends, however the parent ends. Torch-free.

The child polls the id of its parent, which changes when the parent is gone, whatever killed it. Two alternatives fail.
Workers that a training forks would keep the ends of a pipe open. Linux sends its parent-death signal as soon as the
thread that started the child ends.
"""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

VARIABLE = "ATLAS_PARENT"
EVERY = 0.5  # seconds between two polls
GRACE = 5.0  # seconds to undo unfinished work


def named_parent() -> dict[str, str]:
    """Return the environment variable that tells a child the id of this process."""
    return {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Stop this process like SIGTERM once the parent named in its environment is gone; without a name, do nothing."""
    parent = os.environ.pop(VARIABLE, "")
    if parent.isdecimal():
        Thread(target=_watch, args=(int(parent),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
