"""A GitHub App proves who it is by a token that it signs itself, good for some minutes. Source: RFC 7519, RFC 7518.

openssl signs: it is on every host that speaks TLS, and one signature in a quarter of an hour needs no library.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path

from kai.github.api import Stop

BACK, GOOD = 60, 540
"""Seconds: the clocks may differ, and GitHub takes no token of more than ten minutes."""


def token(app: int, key: Path) -> str:
    """A JSON Web Token for the app of this number. Raises Stop."""
    now = int(time.time())
    head = _encoded(json.dumps({"alg": "RS256", "typ": "JWT"}).encode())
    claims = _encoded(json.dumps({"iat": now - BACK, "exp": now + GOOD, "iss": str(app)}).encode())
    signed = f"{head}.{claims}"
    try:
        made = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(key)], input=signed.encode(), capture_output=True, check=False,
            timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Stop(f"openssl, which signs for the GitHub App, can't be run: {error}") from None
    if made.returncode:
        raise Stop("the key of the GitHub App can't be used: /etc/credstore/kai-github/app-key must be its PEM file")
    return f"{signed}.{_encoded(made.stdout)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
