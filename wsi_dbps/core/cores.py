"""How many processor cores there are to work with."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Cores this process may use, which a cluster's scheduler makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
