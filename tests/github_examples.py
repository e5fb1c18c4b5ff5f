"""GitHub's own example payloads: the npm package of Octokit, one version, kept outside the checkout."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.cache import cache_dir, locked

PACKAGE, VERSION = "@octokit/webhooks-examples", "7.6.1"  # MIT
SHA512 = "De6U3XB6O3DtCa7bKgCMzTHdeopqqZ6SNivMYJnK65ierKL1AnNIA0tkRYCRS7lwGT792d+Ps1WbfHlso6MynQ=="
FETCH_SECONDS = 300


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Event and payload of each. Fetched at the first call. Raises RuntimeError where it can't be had."""
    path = cache_dir() / f"github-examples-{VERSION}.json"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            _fetch(path)
    return [(event["name"], payload) for event in json.loads(path.read_text()) for payload in event["examples"]]


def _fetch(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS)
        found = sorted(Path(scratch).glob("*.tgz"))
        if done.returncode or not found:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or 'brought nothing'}")
        digest = base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode()
        if digest != SHA512:
            raise RuntimeError(f"{PACKAGE} {VERSION} is another file than it was: SHA-512 {digest}")
        with tarfile.open(found[0]) as archive:
            member = archive.extractfile("package/api.github.com/index.json")
            assert member
            ready = Path(scratch) / "ready"
            ready.write_bytes(member.read())
        ready.replace(path)
