"""Who is enrolled for TOTP: a marker for each user, which root makes and nobody else can remove.

It stands apart from the secret: one whose marker is there and whose secret isn't is gated and denied, so that a lost
credential store opens no gate. A bot that can't ask the verifier still knows whom to ask for a code.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

DIRECTORY = Path("/var/lib/kai/totp/enrolled")
LARGEST = 4096


class Marker(msgspec.Struct, frozen=True):
    """What a marker says: the step that was used up when the user was enrolled, and which secret belongs to it.

    `secret` is the secret's fingerprint (kai.lib.codes); "" for a marker that doesn't say.
    """

    step: int
    secret: str = ""


def enrolled(directory: Path, user: str) -> bool:
    """Whether the user is enrolled. Raises OSError when that can't be told; the directory itself must be there."""
    try:
        (directory / user).stat()
    except FileNotFoundError:
        directory.stat()
        return False
    return True


def read(directory: Path, user: str) -> Marker:
    """The user's marker. Raises OSError when it can't be read, ValueError when it says something else."""
    with (directory / user).open("rb") as file:
        data = file.read(LARGEST + 1)
    try:
        marker = msgspec.json.decode(data, type=Marker)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a marker ({error})") from None
    if marker.step < 0 or len(data) > LARGEST:
        raise ValueError("not a marker")
    return marker


def encode(marker: Marker) -> bytes:
    return msgspec.json.encode(marker) + b"\n"
