"""The real Claude Code CLI for tests: one pinned version, fetched from npm (or PyPI) and kept outside the checkout.

The program is proprietary ("SEE LICENSE IN README.md"), so it is never part of this repository: a test that
needs it downloads it as any user would. `python3 -m tests.claude_cli` prints where it is.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.cache import cache_dir, locked

VERSION = "2.1.330"
SDK_VERSION = "0.2.187"  # the release of PyPI's claude-agent-sdk that bundles the same binary, byte for byte
FETCH_SECONDS = 900

_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}


class NoCli(Exception):
    """The CLI can't be had here; the text says what was tried and what to do."""


def path() -> Path:
    """The native binary of `VERSION`, fetched at the first call (170 MB, a minute) and from the cache afterwards.

    Raises `NoCli`. Safe to call from several processes: one fetches, the others wait.
    """
    cache = cache_dir()
    program = cache / f"claude-{VERSION}" / "claude"
    with locked(cache / f"claude-{VERSION}.lock"):
        if not program.exists():
            _fetch(program)
        said = _version(program)
    if said != VERSION:
        raise NoCli(f"{program} says it is version {said!r}, not {VERSION}: delete {program.parent} and run again")
    return program


def _fetch(program: Path) -> None:
    """Puts the binary at `program`; its directory appears complete or not at all."""
    tried = []
    with tempfile.TemporaryDirectory(prefix="claude-", dir=program.parent.parent) as scratch_name:
        scratch = Path(scratch_name)
        for source in (_from_npm, _from_pypi):
            try:
                found = source(scratch)
            except NoCli as failure:
                tried.append(str(failure))
                continue
            ready = scratch / "ready"
            ready.mkdir()
            found.rename(ready / "claude")
            (ready / "claude").chmod(0o755)
            shutil.rmtree(program.parent, ignore_errors=True)
            ready.rename(program.parent)
            program.parent.chmod(0o755)
            return
    raise NoCli(f"Claude Code {VERSION} could not be fetched. " + " ".join(tried))


def _from_npm(scratch: Path) -> Path:
    if shutil.which("npm") is None:
        raise NoCli("npm is not installed.")
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise NoCli(f"npm has no binary for {platform.machine()}.")
    package = f"@anthropic-ai/claude-code@{VERSION}"
    quiet = ["--no-save", "--no-fund", "--no-audit"]
    _command(["npm", "install", "--ignore-scripts", *quiet, "--prefix", os.fspath(scratch), package])
    found = scratch / f"node_modules/@anthropic-ai/claude-code-linux-{architecture}/claude"
    if not found.is_file():
        raise NoCli(f"npm installed @anthropic-ai/claude-code@{VERSION}, but without its native binary.")
    return found


def _from_pypi(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _command([*pip, "--dest", os.fspath(scratch), f"claude-agent-sdk=={SDK_VERSION}"])
    wheels = sorted(scratch.glob("claude_agent_sdk-*.whl"))
    if not wheels:
        raise NoCli(f"pip brought no wheel of claude-agent-sdk {SDK_VERSION}.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract("claude_agent_sdk/_bundled/claude", scratch))


def _command(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoCli(f"`{' '.join(argv)}` took longer than {FETCH_SECONDS} s.") from None
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise NoCli(f"`{' '.join(argv)}` ended with {done.returncode}:\n{last}\n")


def _version(program: Path) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise NoCli(f"{program} does not run ({failure}): delete {program.parent} and run again") from failure
    return done.stdout.split(" ")[0].strip()


if __name__ == "__main__":
    try:
        print(path())
    except NoCli as problem:
        sys.exit(str(problem))
