"""The registered probe set: what is measured, on which windows, under which budgets.

`load_probes` reads a probe file. `build_windows` cuts its documents into windows. `register` binds both in a lock
beside the file. An audit calls `load_registered`, which refuses a probe file that no longer matches its lock.
"""

from moe_atlas.probes.load import load_probes
from moe_atlas.probes.lock import Lock
from moe_atlas.probes.registration import ProbeSet, load_registered, register
from moe_atlas.probes.settings.policy import Policy
from moe_atlas.probes.settings.schema import Domain, ProbeConfig
from moe_atlas.probes.windows import Sample, Window, build_windows

__all__ = [
    "Domain",
    "Lock",
    "Policy",
    "ProbeConfig",
    "ProbeSet",
    "Sample",
    "Window",
    "build_windows",
    "load_probes",
    "load_registered",
    "register",
]
