"""The place outside the checkout where tests keep what is slow to get: the agent's binary, base roots, downloads."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def cache_dir() -> Path:
    """$KAI_TEST_CACHE, else `kai-tests` in the user's cache directory. May be deleted at any time but during a run."""
    named = os.environ.get("KAI_TEST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(named) if named else base / "kai-tests"
    cache.mkdir(parents=True, exist_ok=True)
    return cache.resolve()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds the file's lock, waiting for it; a process that dies lets it go."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
