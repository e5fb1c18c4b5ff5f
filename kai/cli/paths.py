"""Where things are on an installed host; the variables are those that systemd and the demo's launcher set."""

from __future__ import annotations

import os
from pathlib import Path


def config_dir() -> Path:
    return Path(os.environ.get("CONFIGURATION_DIRECTORY", "/etc/kai"))


def runtime_dir() -> Path:
    return Path(os.environ.get("KAI_RUNTIME_DIRECTORY", "/run/kai"))
