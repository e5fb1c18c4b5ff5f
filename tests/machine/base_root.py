"""Base roots: a fresh minimal Debian per suite, made once and kept outside the checkout.

A base is what a user has on a small server that was just installed: systemd, D-Bus, apt and its certificates, but
no sudo, no Python and no compiler. What Kai needs beyond that, `install.sh` must bring itself. Bases are only ever
read: containers are overlays or copies of them (`container.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cache import cache_dir, locked
from tests.machine import registries

SUITES = ("bookworm", "trixie")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd"),
    *("ca-certificates", "iproute2", "passwd", "procps"),
)
BUILD_SECONDS = 900

_TOOLS = {  # program on the host: Debian package that brings it
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "mount": "mount",
    "tar": "tar",
    "chroot": "coreutils",
}
_FORMAT = 1  # raise it when this file builds bases differently: old ones are then no longer taken


class Unable(Exception):
    """This host can't build or boot a container; the text says why. A failure of the ring, never a skip."""


def require_tools() -> None:
    """Sees to it that the host's programs are there: installs the Debian packages as root, else raises `Unable`."""
    if os.geteuid() != 0:
        raise Unable("The machine ring boots containers and needs root: run it with sudo.")
    missing = sorted({package for program, package in _TOOLS.items() if shutil.which(program) is None})
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.append("debian-archive-keyring")
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Unable(f"Missing on this host: {', '.join(missing)} (Debian's names). Install them and run again.")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if done.returncode != 0:
            raise Unable(f"`{' '.join(argv)}` failed on this host:\n{done.stderr[-2000:]}")


def base_root(suite: str) -> Path:
    """The base of a suite: half a minute and some 250 MB at the first call, from the cache afterwards.

    Raises `Unable`. Safe to call from several processes: one builds, the others wait.
    """
    if suite not in SUITES:
        raise Unable(f"There is no suite {suite!r}, only {' and '.join(SUITES)}.")
    require_tools()
    known = registries.of_this_host(suite)
    # The host's registries are part of the key: a base made behind another proxy would not find its way out.
    parts = [_FORMAT, suite, PACKAGES, dataclasses.asdict(known)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    bases = cache_dir() / "bases"
    bases.mkdir(exist_ok=True)
    root = bases / f"{suite}-{key}"
    with locked(bases / f"{suite}.lock"):
        for leftover in bases.glob(f"{suite}.building-*"):
            remove_tree(leftover)
        if not root.exists():
            building = Path(tempfile.mkdtemp(prefix=f"{suite}.building-", dir=bases))
            _build(suite, building, known)
            building.rename(root)
    return root


def remove_tree(tree: Path) -> None:
    """Removes a directory with whatever root put there, and never crosses into another file system."""
    subprocess.run(["rm", "-rf", "--one-file-system", os.fspath(tree)], check=True)


def _build(suite: str, root: Path, known: registries.Registries) -> None:
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "--quiet"]
    argv += ["--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"]
    argv += [f"--aptopt={line}" for line in known.apt]
    argv += [suite, os.fspath(root), *known.sources]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unable(f"mmdebstrap of {suite} took longer than {BUILD_SECONDS} s.") from None
    if done.returncode != 0:
        raise Unable(f"mmdebstrap of {suite} failed:\n{done.stderr[-3000:]}")
    root.chmod(0o755)
    (root / "etc/pip.conf").write_text(known.pip)
    _trust(root, known)


def _trust(root: Path, known: registries.Registries) -> None:
    """Makes the container trust what the host trusts, in Debian's way, so that package upgrades keep it."""
    added = registries.new_certificates((root / "etc/ssl/certs/ca-certificates.crt").read_text(), known.certificates)
    if not added:
        return
    for number, certificate in enumerate(added):
        (root / f"usr/local/share/ca-certificates/host-{number}.crt").write_text(certificate + "\n")
    argv = ["chroot", os.fspath(root), "/usr/sbin/update-ca-certificates"]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise Unable(f"`{' '.join(argv)}` failed:\n{done.stderr[-2000:]}")
