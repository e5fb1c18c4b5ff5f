"""The keys of services as `kai doctor` sees them: is there one for each that needs one, and can nobody else read it?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kai.cli.paths import config_dir
from kai.config import ConfigError, Service, load
from kai.config.services import KEYS

STORES = (Path(KEYS), Path("/etc/credstore.encrypted/kai-services"))
CREATE = "`sudo systemd-tmpfiles --create kai.conf` puts it right; without it kai-proxy doesn't start"


def faults() -> list[str]:
    """For `kai doctor`."""
    try:
        services = load(config_dir()).services
    except ConfigError:
        return []  # told as a fault of its own
    return [*_missing(services, STORES), *_open(bool(services), STORES)]


def _missing(services: Iterable[Service], stores: Iterable[Path]) -> Iterator[str]:
    stores = list(stores)
    for service in services:
        name = service.credential
        if name and not service.auth.optional and not any(os.path.lexists(store / name) for store in stores):
            yield (
                f"the service {service.name} has no key: write it to {stores[0] / name} (root, 0600), then "
                "`sudo systemctl stop kai-proxy`, or say auth.optional in services.yaml"
            )


def _open(used: bool, stores: Iterable[Path], owner: int = 0) -> Iterator[str]:
    """Directories and files that others may read or change."""
    for store in stores:
        try:
            names = sorted(os.listdir(store))  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            if used:
                yield f"{store} is missing: {CREATE}"
            continue
        except OSError as error:
            yield f"{store}: {error.strerror}"
            continue
        yield from _wrong(store, owner, 0o700)
        for name in names:
            yield from _wrong(store / name, owner, 0o600)


def _wrong(path: Path, owner: int, mode: int) -> Iterator[str]:
    try:
        status = path.lstat()
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    if mode == 0o600 and not stat.S_ISREG(status.st_mode):
        yield f"{path} is not a file: keys of services are files, one for each"
        return
    if status.st_uid != owner:
        yield f"{path} belongs to uid {status.st_uid}: `sudo chown root:root {path}`"
    if stat.S_IMODE(status.st_mode) & ~mode:
        yield f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: `sudo chmod {mode:04o} {path}`"
