"""How the Bot API answers: one JSON envelope for results, one for refusals.

Wording and codes follow what Telegram's own server says, because programs (python-telegram-bot among them) tell
refusals apart by their text.
"""

from __future__ import annotations

from typing import Any

import msgspec

JsonDict = dict[str, Any]

_encoder = msgspec.json.Encoder()


class ApiError(Exception):
    """A refusal: HTTP status, description, and for 429 the seconds to wait."""

    def __init__(self, code: int, description: str, *, retry_after: int | None = None) -> None:
        super().__init__(f"{code} {description}")
        self.code = code
        self.description = description
        self.retry_after = retry_after

    def body(self) -> bytes:
        """The refusal as the JSON that goes over the wire."""
        answer: JsonDict = {"ok": False, "error_code": self.code, "description": self.description}
        if self.retry_after is not None:
            answer["parameters"] = {"retry_after": self.retry_after}
        return encode(answer)


def bad(what: str) -> ApiError:
    """A 400 in Telegram's form: "Bad Request: " and what was wrong."""
    return ApiError(400, f"Bad Request: {what}")


def too_many(retry_after: int) -> ApiError:
    """A 429 that names the seconds to wait."""
    return ApiError(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)


def conflict(what: str) -> ApiError:
    """A 409, which only getUpdates knows."""
    return ApiError(409, f"Conflict: {what}")


def ok(result: object) -> bytes:
    """A result in its envelope."""
    return encode({"ok": True, "result": result})


def encode(value: object) -> bytes:
    """JSON in UTF-8. Lone surrogates can't be written: a ValueError says so."""
    return _encoder.encode(value)
