"""Whether the kernel ended a process of this unit for want of memory. Source: the kernel's cgroup-v2, memory.events."""

from __future__ import annotations

from pathlib import Path


def kills() -> int:
    """How many processes of this control group the kernel has killed so far; 0 where that can't be told."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2]
        events = Path(f"/sys/fs/cgroup{own}/memory.events").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    counts = dict(line.split() for line in events.splitlines())
    return int(counts.get("oom_kill", 0))
