"""Open files on ground where a hostile process of another account may write.

Everything goes beneath a directory descriptor, no symbolic link is followed anywhere on the way, nothing blocks, and
only regular files up to a size are read. Source: openat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

SYS_OPENAT2 = 437  # the same number on every Linux architecture
AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Refused(Exception):
    """The file is not what it should be; the message says how, in words for the user."""


def open_beneath(root: Path, relative: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of `relative` under `root`. Raises OSError (ELOOP for a link, EXDEV for a way out)."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        how = _OpenHow(
            flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY,
            0o640 if flags & os.O_CREAT else 0,
            RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
        )
        fd = _libc.syscall(
            ctypes.c_long(SYS_OPENAT2),
            directory,
            os.fsencode(relative),
            ctypes.byref(how),
            ctypes.sizeof(how),
        )
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(root / relative))
        return int(fd)
    finally:
        os.close(directory)


def read(root: Path, relative: str, limit: int) -> tuple[bytes, bool] | None:
    """The first `limit` bytes of a regular file and whether there are more; None when there is no such file.

    Raises Refused when it is a link, a pipe, a device, or unreadable.
    """
    try:
        fd = open_beneath(root, relative)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(f"{root / relative} is a symbolic link; put a regular file there") from None
        raise Refused(f"{root / relative}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(f"{root / relative} is not a regular file")
    with os.fdopen(fd, "rb") as file:
        data = file.read(limit + 1)
    return data[:limit], len(data) > limit
