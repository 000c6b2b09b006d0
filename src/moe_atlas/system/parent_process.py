"""A process that ends with the one that started it, however that one ends. Torch-free.

The child asks who its parent is: the answer changes when the parent is gone, whatever killed it. A pipe would not do,
because workers that a training forks hold its ends open, nor would Linux's signal at a parent's death, which comes when
the thread that started the child ends.
"""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

VARIABLE = "ATLAS_PARENT"
EVERY = 0.5  # seconds between two looks
GRACE = 5.0  # seconds to undo what is half-done


def named_parent() -> dict[str, str]:
    """Return the environment variable by which a child of this process knows its parent."""
    return {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Stop this process, as SIGTERM does, once the parent named in its environment is gone; do nothing without one."""
    parent = os.environ.pop(VARIABLE, "")
    if parent.isdecimal():
        Thread(target=_watch, args=(int(parent),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
