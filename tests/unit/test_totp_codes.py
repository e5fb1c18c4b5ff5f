"""The arithmetic of codes: RFC 6238, steps, what a secret must be."""

from __future__ import annotations

import base64
from unittest.mock import patch

import pyotp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.lib import codes

RFC = base64.b32encode(b"12345678901234567890").decode()
VECTORS = {
    59: "94287082",
    1111111109: "07081804",
    1111111111: "14050471",
    1234567890: "89005924",
    2000000000: "69279037",
    20000000000: "65353130",
}
"""RFC 6238, appendix B, SHA-1; a code of six digits is the end of one of eight."""
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


def code_at(step: int, secret: str = SECRET) -> str:
    return pyotp.TOTP(secret).generate_otp(step)


@pytest.mark.parametrize(("now", "code"), VECTORS.items())
def test_codes_are_those_of_rfc_6238(now: int, code: str) -> None:
    step = codes.step_at(now)
    assert codes.matching(RFC, code[-6:], step) == step


@given(st.integers(1, 1 << 40), st.integers(-5, 5))
def test_the_step_before_and_the_step_after_are_taken_and_no_other(step: int, drift: int) -> None:
    if step + drift < 0:
        return
    code = code_at(step + drift)
    if abs(drift) <= 1:
        assert codes.matching(SECRET, code, step) in (step + drift, step + 1)
    elif code not in {code_at(step + d) for d in (-1, 0, 1)}:
        assert codes.matching(SECRET, code, step) == -1


@given(st.text(min_size=0, max_size=12))
def test_only_six_ascii_digits_are_a_code(text: str) -> None:
    assert bool(codes.CODE.fullmatch(text)) == (len(text) == 6 and all(char in "0123456789" for char in text))


@pytest.mark.parametrize(
    "code", ["", "12345", "1234567", "12345６", "١٢٣٤٥٦", " 12345", "12345\n", "123456\n", "-12345"]
)
def test_what_looks_like_digits_to_python_is_no_code(code: str) -> None:
    assert not codes.CODE.fullmatch(code)


@pytest.mark.parametrize("drift", [-1, 0, 1, None])
def test_all_three_codes_are_compared_whole_whatever_comes_out(drift: int | None) -> None:
    step = 60_000_000
    code = "000000" if drift is None else code_at(step + drift)
    compared: list[tuple[str, str]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return a == b

    with patch("kai.lib.codes.hmac.compare_digest", compare):
        codes.matching(SECRET, code, step)
    assert compared == [(code_at(step + d), code) for d in (-1, 0, 1)]


def test_a_clock_at_the_epoch_is_no_fault() -> None:
    assert codes.matching(SECRET, code_at(0), 0) in (-1, 0)


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "expected base32"),
        ("jbswy3dpehpk3pxp", "expected base32"),
        ("JBSWY3DPEHPK3PX1", "expected base32"),
        ("JBSW Y3DP EHPK 3PXP", "expected base32"),
        ("JBSWY3DPEHPK3PXP", "only 80 bits"),
        ("JBSWY3DPEHPK3PXPJBSWY", "only 104 bits"),
        ("JBSWY3DP", "only 40 bits"),
        ("JBSWY3DPEHPK3PXPA", "its length can't be"),
    ],
)
def test_a_secret_that_is_none_is_told_and_not_shown(secret: str, words: str) -> None:
    said = codes.fault(secret)
    assert words in said
    assert not secret or secret not in said


def test_112_bits_and_more_are_taken() -> None:
    for secret in ("JBSWY3DPEHPK3PXPJBSWY3A", SECRET, pyotp.random_base32(), "JBSWY3DPEHPK3PXPJBSWY3A="):
        assert codes.fault(secret) == ""
        assert codes.matching(secret, code_at(7, secret), 7) == 7


def test_a_fingerprint_tells_secrets_apart_and_not_how_they_are_padded() -> None:
    assert codes.fingerprint("JBSWY3DPEHPK3PXPJBSWY3A") == codes.fingerprint("JBSWY3DPEHPK3PXPJBSWY3A=")
    assert codes.fingerprint(SECRET) != codes.fingerprint(RFC)
    assert len(codes.fingerprint(SECRET)) == 16
