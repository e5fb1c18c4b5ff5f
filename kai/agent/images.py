"""Images that a model is shown, and not only told the path of: what they are by their first bytes, and how many fit."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from kai.interfaces import Part

IMAGE_LIMIT = 3_750_000
"""Bytes of one image: as base64, the 5 MB that the model's service takes."""
PROMPT_LIMIT = 16_000_000
"""Bytes of all images of a prompt: as base64, most of the 32 MB that a request may have."""
HEAD = 12
"""Bytes that `image_type` looks at."""


def image_type(head: bytes) -> str:
    """The MIME type of an image that a model takes, "" for anything else. What the sender called it is no proof."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return ""


def load(prompt: Iterable[Part]) -> dict[str, str]:
    """The images of a prompt as base64, by their path, as far as they fit. One that is gone again is left out."""
    found: dict[str, str] = {}
    room = PROMPT_LIMIT
    for part in prompt:
        if part.kind != "file" or not part.mime.startswith("image/"):
            continue
        try:
            with Path(part.name).open("rb") as file:
                data = file.read(min(IMAGE_LIMIT, room) + 1)
        except OSError:
            continue
        if len(data) <= min(IMAGE_LIMIT, room) and image_type(data) == part.mime:
            room -= len(data)
            found[part.name] = base64.b64encode(data).decode("ascii")
    return found
