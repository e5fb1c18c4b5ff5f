"""The address of a call: nothing that an agent gives leads away from the service's own."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.config import Service
from kai.config.services import Auth
from kai.interfaces import ServiceRefused
from kai.lib.varlink import InvalidParameter
from kai.proxy.target import LONGEST_SUFFIX, target

OPEN = Service(name="x", url="https://api.example/v1/things", allow_path_suffix=True)
ROOT = Service(name="x", url="https://api.example", allow_path_suffix=True)
KEYED = Service(
    name="x",
    url="https://api.example/v1",
    params=(("units", "metric"),),
    auth=Auth(type="query", name="key", prefix="p-"),
)


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/things"),
        ("7", "/v1/things/7"),
        ("/7", "/v1/things/7"),
        ("7/", "/v1/things/7/"),
        ("a b/ä", "/v1/things/a%20b/%C3%A4"),
        ("a%20b", "/v1/things/a%20b"),
        ("100%25", "/v1/things/100%25"),
        ("a.b/..c/d..", "/v1/things/a.b/..c/d.."),
        ("...", "/v1/things/..."),
        ("user@host:8080", "/v1/things/user@host:8080"),
        ("search;v=1,2&x=$(y)", "/v1/things/search;v=1,2&x=$(y)"),
        ("https:", "/v1/things/https:"),
        ('"<>{}|^`', "/v1/things/%22%3C%3E%7B%7D%7C%5E%60"),
    ],
)
def test_a_suffix_is_appended_to_the_services_path(suffix: str, path: str) -> None:
    assert target(OPEN, suffix, {}) == path


def test_a_service_without_a_path_has_the_root() -> None:
    assert target(ROOT, "", {}) == "/"
    assert target(ROOT, "a", {}) == "/a"
    assert target(Service(name="x", url="https://api.example/v1/", allow_path_suffix=True), "a", {}) == "/v1/a"


AWAY = [
    # steps
    "..",
    ".",
    "../admin",
    "a/../../admin",
    "a/..",
    "a/./b",
    "..;/admin",
    "..;x=1/admin",
    ".. /admin",
    "%2e%2e/admin",
    "%2E%2e%2Fadmin",
    ".%2e/admin",
    "%252e%252e/admin",
    "%25252e%25252e/admin",
    "a%2f..%2f..%2fadmin",
    "a/%2e%2e%5cadmin",
    # slashes
    "//evil.example/x",
    "///evil.example",
    "a//b",
    "%2f%2fevil.example",
    "/%2fevil.example",
    "%2fevil.example",
    "a/%2f/b",
    "https://evil.example/",
    "http://169.254.169.254/latest/meta-data",
    "//user:pass@evil.example/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/_x",
    # backslashes
    "..\\admin",
    "\\\\evil.example",
    "a\\b",
    "a%5cb",
    "a%255cb",
    # queries and fragments
    "a?key=mine",
    "?key=mine",
    "a%3fkey=mine",
    "a#b",
    "#@evil.example/",
    "a%23b",
    "a%2523b",
    # control characters
    "a\r\nHost: evil.example",
    "a\nb",
    "a\tb",
    "a\0b",
    "a%0d%0aHost:%20evil.example",
    "a%00",
    "a%250d%250aX",
    "a\u2028b",
    "a\u202eb",
    "a\u0085b",
    "a\u200bb",
    # characters that some servers take for others
    "\uff0e\uff0e/admin",
    "\u2024\u2024/admin",
    "\u3002\u3002/admin",
    "\u2025/admin",
    "a\uff0f\uff0fb",
    "a\u2215..\u2215b",
    "a\uff3cb",
    "a\uff1fb",
    "a\uff03b",
    "%ef%bc%8e%ef%bc%8e/admin",
    # encodings that aren't any
    "a%",
    "a%zz",
    "a%2",
    "a%u002e",
    "%c0%ae%c0%ae/admin",
    "%ff",
    "%25252525252e",
]


@pytest.mark.parametrize("suffix", AWAY, ids=ascii)
def test_a_suffix_that_may_lead_away_is_refused(suffix: str) -> None:
    for service in (OPEN, ROOT):
        with pytest.raises(ServiceRefused, match=r"^path_suffix: "):
            target(service, suffix, {})


def test_a_suffix_needs_permission() -> None:
    with pytest.raises(ServiceRefused, match="allow_path_suffix"):
        target(Service(name="x", url="https://api.example/v1"), "a", {})


def test_a_suffix_has_a_bound_and_is_text() -> None:
    with pytest.raises(ServiceRefused, match="longer"):
        target(OPEN, "a" * (LONGEST_SUFFIX + 1), {})
    with pytest.raises((ServiceRefused, InvalidParameter), match=r"^path_suffix: "):
        target(OPEN, "\ud800", {})


@given(st.text(max_size=40) | st.text(alphabet="./\\%2eEfF5cC?#;@: \r\n\u2024\uff0e", max_size=20))
def test_whatever_is_appended_stays_below_the_services_path(suffix: str) -> None:
    try:
        made = target(OPEN, suffix, {})
    except (ServiceRefused, InvalidParameter):
        return
    assert made.startswith("/v1/things")
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made
    parts = urlsplit(f"https://api.example{made}")
    assert (parts.netloc, parts.query, parts.fragment) == ("api.example", "", "")
    assert not {".", ".."} & set(parts.path.split("/"))


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=5))
def test_parameters_arrive_as_they_were_given(params: dict[str, str]) -> None:
    try:
        made = target(OPEN, "", params)
    except (ServiceRefused, InvalidParameter):
        return
    parts = urlsplit(f"https://api.example{made}")
    assert (parts.path, parts.fragment) == ("/v1/things", "")
    assert parse_qsl(parts.query, keep_blank_values=True) == list(params.items())


@pytest.mark.parametrize(
    "name", ["key", "KEY", " key", "key ", "key[]", "key[0]", "\uff4bey", "units", "Units", "units[a]"]
)
def test_what_the_operator_set_is_not_replaced(name: str) -> None:
    with pytest.raises(ServiceRefused, match=r"^params: "):
        target(KEYED, "", {name: "mine"}, "secret")


def test_the_key_goes_last_and_only_where_there_is_one() -> None:
    assert target(KEYED, "", {"q": "a&key=b"}, "se/cret") == "/v1?units=metric&q=a%26key%3Db&key=p-se%2Fcret"
    assert target(KEYED, "", {}) == "/v1?units=metric"


@pytest.mark.parametrize(
    "params",
    [
        {"": "x"},
        {"a\nb": "x"},
        {"a" * 101: "x"},
        {"a": "\0"},
        {"a": "x" * 4097},
        {"a": "\ud800"},
        {f"p{number}": "x" for number in range(51)},
    ],
)
def test_parameters_have_bounds(params: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter, match=r"^params: "):
        target(OPEN, "", params)


def test_the_whole_has_a_bound() -> None:
    with pytest.raises(ServiceRefused, match="8192"):
        target(OPEN, "", {"a": "x" * 4000, "b": "x" * 4000, "c": "x" * 300})
