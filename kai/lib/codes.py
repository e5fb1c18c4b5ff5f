"""Time-based one-time codes: six digits, a new one every 30 seconds. Source: RFC 6238; the arithmetic is pyotp's.

Used by the verifier, and by `kai totp setup` for the one code that it asks for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

STEP = 30
"""Seconds that a code is for."""
SHORTEST = 14
"""Bytes of the shortest secret that is taken, pyotp's own limit: 112 bits. Kai's have 160."""
CODE = re.compile(r"[0-9]{6}", re.ASCII)
_SECRET = re.compile(r"[A-Z2-7]+={0,6}", re.ASCII)


def step_at(now: float) -> int:
    """The number of the step that a time (seconds since the epoch) lies in."""
    return int(now // STEP)


def matching(secret: str, code: str, step: int) -> int:
    """The step before, at or after `step` that this code is for, or -1.

    All three codes are computed and compared whole, whatever comes out: how long it takes tells nothing of the code.
    """
    import pyotp

    totp, found = pyotp.TOTP(secret), -1
    for each in (step - 1, step, step + 1):
        same = hmac.compare_digest(totp.generate_otp(max(each, 0)), code)
        found = (found, each)[same]
    return found


def fault(secret: str) -> str:
    """What is wrong with a secret, "" for nothing. The words don't show it."""
    if not _SECRET.fullmatch(secret):
        return "expected base32: letters A-Z and digits 2-7"
    try:
        size = len(base64.b32decode(padded(secret)))
    except binascii.Error:
        return "not base32: its length can't be"
    return "" if size >= SHORTEST else f"only {size * 8} bits, at least {SHORTEST * 8} are needed"


def padded(secret: str) -> str:
    text = secret.rstrip("=")
    return text + "=" * (-len(text) % 8)


def fingerprint(secret: str) -> str:
    """Tells whether a marker and a secret belong together, and nothing else: 64 bits of a one-way function."""
    key = base64.b32decode(padded(secret))
    return hmac.new(key, b"kai-totp enrolment", hashlib.sha256).hexdigest()[:16]
