"""A key in an answer is masked in every spelling of an honest echo, wherever the pieces end."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.proxy.mask import MASK, Masker, masked

KEY = "sk-a/b+c=d&e\"f'<1>\\2.~"
KEYS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40)


def mask(key: str, pieces: list[bytes]) -> bytes:
    masker = Masker(key)
    return b"".join([*(masker.feed(piece) for piece in pieces), masker.end()])


def spellings(key: str) -> dict[str, bytes]:
    data = key.encode()
    every = "".join(f"%{byte:02x}" for byte in data)
    return {
        "as it is": data,
        "url": quote(key, safe="").encode(),
        "form": quote_plus(key).encode(),
        "url, every character": every.encode(),
        "url, capitals": every.upper().encode(),
        "url, twice": quote(quote(key, safe=""), safe="").encode(),
        "json": json.dumps(key)[1:-1].encode(),
        "json with \\/": json.dumps(key)[1:-1].replace("/", "\\/").encode(),
        "json, every character": "".join(f"\\u{byte:04x}" for byte in data).encode(),
        "python": "".join(f"\\x{byte:02X}" for byte in data).encode(),
        "html": html.escape(key).encode(),
        "html, decimal": "".join(f"&#{byte};" for byte in data).encode(),
        "html, hexadecimal": "".join(f"&#x{byte:X};" for byte in data).encode(),
        "hexadecimal": data.hex().encode(),
        "hexadecimal, capitals": data.hex().upper().encode(),
        "base64": base64.b64encode(data),
        "base64url": base64.urlsafe_b64encode(data).rstrip(b"="),
        "base64 in json": base64.b64encode(data).replace(b"/", b"\\/"),
    }


@pytest.mark.parametrize("name", spellings(KEY))
def test_a_spelling_is_masked(name: str) -> None:
    found = mask(KEY, [b"before " + spellings(KEY)[name] + b" after"])
    assert found.startswith(b"before " + MASK)
    assert found.endswith(b" after")
    assert len(found) <= len("before *** after") + 4  # what base64 has beyond the key's own bytes may stay


@given(KEYS, st.sampled_from(sorted(spellings(KEY))), st.lists(st.integers(1, 30), max_size=20))
def test_a_spelling_is_masked_wherever_the_pieces_end(key: str, name: str, sizes: list[int]) -> None:
    text = b"{}" + spellings(key)[name] + b"{}" * 30
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    split = mask(key, [*pieces, text])
    assert split == mask(key, [b"".join([*pieces, text])])
    assert MASK in split
    assert spellings(key)[name] not in split or spellings(key)[name] in MASK


@pytest.mark.parametrize("before", range(9))
@pytest.mark.parametrize("after", range(4))
def test_a_key_inside_of_a_longer_base64_is_masked(before: int, after: int) -> None:
    key = "K3y-0123456789"
    whole = base64.b64encode(b"u" * before + key.encode() + b"z" * after)
    assert MASK in mask(key, [b"Basic " + whole])


def test_byte_by_byte() -> None:
    text = b"x" * 500 + KEY.encode() + b"y" * 500
    assert mask(KEY, [bytes([byte]) for byte in text]) == b"x" * 500 + MASK + b"y" * 500


def test_keys_side_by_side_and_halves_of_keys() -> None:
    key = "abcabcabd"
    assert mask(key, [b"abcabcabd" * 3]) == MASK * 3
    assert mask(key, [b"abcabc", b"abcabd"]) == b"abc" + MASK
    assert mask(key, [b"abcabcab"]) == b"abcabcab"


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_what_has_no_key_stays_as_it_is(pieces: list[bytes]) -> None:
    assert mask("no-such-key-in-here", pieces) == b"".join(pieces)
    assert mask("", pieces) == b"".join(pieces)


def test_no_more_is_held_back_than_a_spelling_is_long() -> None:
    masker = Masker("abcdefgh")
    for _ in range(100):
        masker.feed(bytes(1000))
        assert len(masker.held) < 8 * 8 + 1


def test_a_text_is_masked() -> None:
    assert masked(f"text/plain; key={KEY}", KEY) == "text/plain; key=***"
    assert masked("text/plain; ä", KEY) == "text/plain; ä"
