"""How this host reaches its package registries, carried into a container.

`install.sh` runs inside a container exactly as on a user's server, and needs apt and pip there. A host may sit
behind a proxy, a mirror or a certificate authority of its own, so whatever its own clients are told is copied.
Nothing here names a registry but Debian's own, which is what a host without any setting uses.
"""

from __future__ import annotations

import configparser
import functools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_DEBIAN = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_SUFFIXES = ("", "-updates", "-security")

_APT_SETTING = re.compile(r"Acquire::(?:(?:http|https)::(?!Proxy-Auto-Detect)|Check-|Retries|ForceIPv)")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PIP_NAMES = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "retries", "timeout")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT")


@dataclass(frozen=True)
class Registries:
    """What a container of one suite is given."""

    sources: tuple[str, ...]  # one-line apt sources
    apt: tuple[str, ...]  # lines of apt.conf
    pip: str  # /etc/pip.conf
    certificates: tuple[str, ...]  # PEM, those that the host trusts
    binds: tuple[str, ...]  # directories that pip's settings name: shown read-only at the same place


@functools.cache
def of_this_host(suite: str) -> Registries:
    """Reads the host's settings; a host without any gives Debian's and PyPI's public addresses."""
    pip = _pip_settings()
    return Registries(
        sources=_sources(suite),
        apt=_apt_settings(),
        pip="".join(["[global]\n", f"cert = {BUNDLE}\n"] + [f"{name} = {value}\n" for name, value in pip.items()]),
        certificates=_certificates(),
        binds=tuple(sorted(_local_directories(pip))),
    )


def environment() -> dict[str, str]:
    """What commands run through the harness are told about the network: proxies, npm's settings, the bundle.

    Daemons inside don't see it: it belongs to the one who types the command, as on a real host.
    """
    env = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
    env |= {name: value for name, value in os.environ.items() if name.lower() == "npm_config_registry"}
    env |= {name: str(BUNDLE) for name in _BUNDLE_VARIABLES if name in os.environ}
    return env


def hosts(name: str) -> str:
    """/etc/hosts for a machine of that name: the host's own lines, and the name itself so that sudo finds it."""
    own = [line for line in _text(Path("/etc/hosts")).splitlines() if not line.startswith("127.0.1.1")]
    if not any("localhost" in line for line in own):
        own.insert(0, "127.0.0.1 localhost")
    return "\n".join([*own, f"127.0.1.1 {name}", ""])


def resolver() -> str:
    """/etc/resolv.conf as the host has it; a stub on loopback answers inside too, the network is shared."""
    return _text(Path("/etc/resolv.conf"))


def new_certificates(known: str, certificates: tuple[str, ...]) -> list[str]:
    """Those of `certificates` that the bundle `known` lacks."""
    have = set(_CERTIFICATE.findall(known))
    return [certificate for certificate in certificates if certificate not in have]


def _sources(suite: str) -> tuple[str, ...]:
    """The mirrors of a Debian host with the suite put in; Debian's own where there are none."""
    found = dict.fromkeys(_SUFFIXES, _DEBIAN) | {"-security": _SECURITY}
    release = _text(Path("/etc/os-release"))
    codename = re.search(r"^VERSION_CODENAME=(\w+)$", release, re.MULTILINE)
    if codename and re.search(r"^ID=debian$", release, re.MULTILINE):
        asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
        for line in _output(asked).splitlines():
            address, _, named = line.partition(" ")
            suffix = named.removeprefix(codename[1])
            if named.startswith(codename[1]) and suffix in found and not address.startswith("file:"):
                found[suffix] = address
    return tuple(f"deb {address} {suite}{suffix} main" for suffix, address in found.items())


def _apt_settings() -> tuple[str, ...]:
    lines = _output(["apt-config", "dump"]).splitlines()
    return tuple(sorted({line for line in lines if _APT_SETTING.match(line) and not line.endswith(' "";')}))


def _pip_settings() -> dict[str, str]:
    """pip's settings of site, user and environment in pip's own order, as far as they speak of the network."""
    home = Path.home()
    files: list[str | Path] = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf"]
    files += [home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    parser = configparser.RawConfigParser()
    parser.read([*files, os.environ.get("PIP_CONFIG_FILE", os.devnull)])
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found |= dict(parser.items(section))
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    if "default-timeout" in found:
        found["timeout"] = found["default-timeout"]
    return {name: " ".join(found[name].split()) for name in _PIP_NAMES if name in found}


def _local_directories(pip: dict[str, str]) -> set[str]:
    words = " ".join(pip.get(name, "") for name in ("index-url", "extra-index-url", "find-links")).split()
    paths = [word.removeprefix("file://") for word in words]
    # A simple index links to its files beside it ("../../files/…"), so its parent directory has to come along.
    roots = [Path(path).parent if path.rstrip("/").endswith("/simple") else Path(path) for path in paths]
    return {os.fspath(root) for root in roots if root.is_absolute() and root.is_dir() and root != Path("/")}


def _certificates() -> tuple[str, ...]:
    named = {Path(os.environ[name]) for name in _BUNDLE_VARIABLES if os.environ.get(name)}
    text = "\n".join(_text(file) for file in sorted({BUNDLE, *named}))
    return tuple(sorted(set(_CERTIFICATE.findall(text))))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(argv: Sequence[str]) -> str:
    """What the command prints; nothing when the host doesn't have it (a host that isn't Debian)."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
