"""services.yaml: what it takes, what it refuses and in which words, and that no key ever stands in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kai.cli import servicekeys
from kai.config import Service, check, load
from kai.config.services import Auth
from tests.unit.test_config_docs import ALICE, leaves, tags, uncommented

ROOT = Path(__file__).resolve().parents[2]
URL = "https://api.example/v1"
SECRET = "sk-ant-api03-0123456789abcdefghijklmnopqrstuvwxyz"


def services(directory: Path, found: Any) -> tuple[Service, ...]:
    write(directory, found)
    return load(directory).services


def faults(directory: Path, found: Any) -> list[str]:
    write(directory, found)
    return [line.partition("services.yaml: ")[2] for line in check(directory)]


def write(directory: Path, found: Any) -> None:
    (directory / "users.yaml").write_text(ALICE)
    (directory / "services.yaml").write_text(
        found if isinstance(found, str) else yaml.safe_dump(found, sort_keys=False)
    )


def one(directory: Path, **settings: Any) -> list[str]:
    return faults(directory, {"services": {"x": {"url": URL, **settings}}})


def test_no_file_and_an_empty_one_are_no_services(tmp_path: Path) -> None:
    (tmp_path / "users.yaml").write_text(ALICE)
    assert load(tmp_path).services == ()
    for text in ("", "services:\n", "services: {}\n", "services: []\n"):
        assert services(tmp_path, text) == ()


def test_a_service_needs_its_address_alone(tmp_path: Path) -> None:
    (found,) = services(tmp_path, {"services": {"x": {"url": URL}}})
    assert found == Service(name="x", url=URL)
    assert (found.method, found.auth.type, found.credential, found.rate) == ("GET", "none", "", 60)
    assert not (found.allow_private or found.allow_path_suffix)
    assert found.serves("alice")


def test_every_setting_is_read(tmp_path: Path) -> None:
    settings = {
        "url": "HTTPS://API.Example:8443/v1/Things",
        "method": "post",
        "auth": {"type": "header", "name": "X-Key", "credential": "other", "prefix": "Token", "optional": True},
        "headers": {"Accept": "text/plain", "X-Version": 7},
        "params": {"units": "metric", "n": 3, "all": True},
        "description": "Things",
        "notes": "Line one\nLine two",
        "allow_path_suffix": True,
        "allow_private": True,
        "users": ["alice"],
        "rate": 5,
    }
    (found,) = services(tmp_path, {"services": {"my-things_2": settings}})
    assert (found.url, found.method, found.credential) == ("https://api.example:8443/v1/Things", "POST", "other")
    assert found.auth == Auth("header", "X-Key", "other", "Token", True)
    assert found.headers == (("Accept", "text/plain"), ("X-Version", "7"))
    assert found.params == (("units", "metric"), ("n", "3"), ("all", "true"))
    assert found.serves("alice")
    assert not found.serves("bob")


def test_the_list_of_the_original_is_taken_and_a_name_stands_once(tmp_path: Path) -> None:
    found = services(tmp_path, {"services": [{"name": "a", "url": URL, "auth": "bearer"}, {"name": "b", "url": URL}]})
    assert [(each.name, each.credential) for each in found] == [("a", "a"), ("b", "")]
    twice = [{"name": "a", "url": URL}, {"name": "a", "url": URL}]
    assert "a second time" in faults(tmp_path, {"services": twice})[0]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example",
        "ftp://api.example",
        "file:///etc/passwd",
        "gopher://api.example",
        "https://",
        "https:///v1",
        "https:/api.example",
        "https://user@api.example",
        "https://user:password@api.example",
        "https://@api.example",
        "https://api.example?x=1",
        "https://api.example/#x",
        "https://api.example/a%2e",
        "https://api.example/a b",
        "https://api.example\\@evil.example",
        "https://api.example/\\evil",
        "https://api.example/../x",
        "https://api.example/./x",
        "https://api.example//x",
        "https://api.example/\r\nx",
        "https://api.example\n",
        "https://api.example.",
        "https://api..example",
        "https://-api.example",
        "https://api.example:0",
        "https://api.example:99999",
        "https://api.example:x",
        "https://\u0430pi.example",
        "https://api\u3002example",
        "https://2130706433",
        "https://0x7f000001",
        "https://0x7f.0.0.1",
        "https://0177.0.0.1",
        "https://127.1",
        "https://1.2.3.4.",
        "https://[::1%eth0]",
        "https://[::ffff:127.0.0.1",
        "https://::1",
        "https://[1.2.3.4]",
    ],
)
def test_an_address_has_one_form(tmp_path: Path, url: str) -> None:
    for private in (False, True):
        (fault,) = one(tmp_path, url=url, allow_private=private)
        assert fault.startswith("services.x.url: expected an https:// address"), fault
        assert "password" not in fault


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example",
        "https://127.0.0.1",
        "https://10.1.2.3/x",
        "https://[::1]:8080",
        "https://[fd00::1]",
        "https://169.254.169.254",
        "https://localhost",
        "https://nas.localhost",
        "https://metadata.google.internal",
    ],
)
def test_a_private_address_needs_a_word(tmp_path: Path, url: str) -> None:
    (fault,) = one(tmp_path, url=url)
    assert fault.startswith("services.x.url: ")
    assert "allow_private" in fault
    assert one(tmp_path, url=url, allow_private=True) == []


@pytest.mark.parametrize("name", ["", "X", "a b", "-a", "a/b", "../a", "a" * 49, "ä", "a.b"])
def test_a_name_is_plain(tmp_path: Path, name: str) -> None:
    (fault,) = faults(tmp_path, {"services": {name: {"url": URL}}})
    assert "expected a name such as weather" in fault


@pytest.mark.parametrize(
    ("settings", "path", "says"),
    [
        ({"auth": {"type": "basic"}}, "auth.type", "expected bearer, header, query or none"),
        ({"auth": {"type": "header"}}, "auth.name", "missing, expected the name of the header"),
        ({"auth": {"type": "query"}}, "auth.name", "missing, expected the name of the param"),
        ({"auth": {"type": "bearer", "name": "x"}}, "auth.name", "has no meaning with type bearer"),
        ({"auth": {"type": "none", "credential": "x"}}, "auth.credential", "has no meaning with type none"),
        ({"auth": {"type": "bearer", "prefix": "x"}}, "auth.prefix", "has no meaning with type bearer"),
        ({"auth": {"type": "header", "name": "Host"}}, "auth.name", "is set by kai-proxy"),
        ({"auth": {"type": "header", "name": "X: y"}}, "auth.name", "expected the name of a header or parameter"),
        ({"auth": {"type": "header", "name": "X-A"}, "headers": {"x-a": "1"}}, "auth.name", "stands in headers too"),
        ({"auth": {"type": "query", "name": "k"}, "params": {"K": "1"}}, "auth.name", "stands in params too"),
        ({"auth": {"type": "bearer", "credential": "../x"}}, "auth.credential", "expected the name of a file"),
        ({"auth": {"mode": "bearer"}}, "auth.mode", "auth.type"),
        ({"auth": {"type": "bearer", "env": "KEY"}}, "auth.env", "keys don't stand here"),
        ({"headers": {"Authorization": "x"}}, "headers.Authorization", "keys don't stand here"),
        ({"headers": {"Cookie": "x"}}, "headers.Cookie", "keys don't stand here"),
        ({"headers": {"Host": "evil"}}, "headers.Host", "is set by kai-proxy"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "headers.Transfer-Encoding", "is set by kai-proxy"),
        ({"headers": {"Accept-Encoding": "gzip"}}, "headers.Accept-Encoding", "is set by kai-proxy"),
        ({"headers": {"X": "a\r\nY: b"}}, "headers.X", "one line"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a", "a second time"),
        ({"headers": ["X"]}, "headers", "expected a mapping"),
        ({"params": {"a": [1]}}, "params.a", "expected a text"),
        ({"params": {"": "x"}}, "params", "is not a parameter's name"),
        ({"method": "TRACE"}, "method", "expected GET, POST"),
        ({"rate": 0}, "rate", "expected a number of calls a minute"),
        ({"rate": 10000}, "rate", "expected a number of calls a minute"),
        ({"users": []}, "users", "expected a list of users' names"),
        ({"users": ["alice", "alice"]}, "users", "expected a list of users' names"),
        ({"users": ["carol"]}, "users", "is not in users.yaml, expected one of alice"),
        ({"description": "a\nb"}, "description", "one line"),
        ({"allow_private": "perhaps"}, "allow_private", "expected"),
        ({"allow_internal": True}, "allow_internal", "allow_private"),
        ({"ur": "x"}, "ur", "unknown key"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, settings: dict[str, Any], path: str, says: str) -> None:
    found = one(tmp_path, **settings)
    assert len(found) == 1, found
    assert found[0].startswith(f"services.x.{path}"), found
    assert says in found[0]


def test_faults_of_the_files_form(tmp_path: Path) -> None:
    assert "expected a mapping" in faults(tmp_path, "- x\n")[0]
    assert "unknown key" in faults(tmp_path, {"service": {}})[0]
    assert "expected a mapping" in faults(tmp_path, {"services": 7})[0]
    assert "expected a mapping of settings" in faults(tmp_path, {"services": {"x": URL}})[0]
    assert "the name is the key" in faults(tmp_path, {"services": {"x": {"name": "y", "url": URL}}})[0]
    assert faults(tmp_path, {"services": {"x": {}}})[0].startswith("services.x.url: ")


@pytest.mark.parametrize(
    "settings",
    [
        {"url": f"https://api.example/{SECRET}", "method": "x"},
        {"url": f"https://{SECRET}@api.example"},
        {"auth": {"type": "bearer", "key": SECRET}},
        {"auth": {"type": "bearer", "credential": SECRET}},
        {"auth": {"type": "header", "name": "X", "prefix": f"{SECRET}\n"}},
        {"headers": {"X": SECRET}},
        {"params": {"key": SECRET}},
        {"token": SECRET},
        {"api_key": SECRET},
    ],
)
def test_a_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = one(tmp_path, **settings)
    assert found
    assert SECRET not in "".join(found)


# ---- the example and the page ----


def test_the_example_has_no_service_as_it_stands_and_three_without_its_signs(tmp_path: Path) -> None:
    (tmp_path / "users.yaml").write_text(ALICE)
    (tmp_path / "services.yaml").write_text((ROOT / "etc/services.yaml").read_text())
    assert load(tmp_path).services == ()
    (tmp_path / "services.yaml").write_text(uncommented("services.yaml"))
    found = load(tmp_path).services
    assert [(each.name, each.auth.type) for each in found] == [
        ("weather", "none"),
        ("github", "bearer"),
        ("search", "header"),
    ]


def test_the_examples_of_the_page_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "man/kai-services.yaml.5").read_text().partition(".Sh EXAMPLES\n")[2]
    (example,) = re.findall(r"^services:\n(?:  .*\n)+", text, re.MULTILINE)
    assert len(services(tmp_path, example)) == 3


def test_the_page_describes_every_field_once_and_in_order() -> None:
    known = [name for name in leaves(Service) if name != "name"]
    assert tags("kai-services.yaml.5", "FIELDS") == known
    assert {field.name for field in msgspec.structs.fields(Auth)} == {
        name.removeprefix("auth.") for name in known if name.startswith("auth.")
    }


# ---- kai doctor ----


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "plain", tmp_path / "encrypted"
    for store in made:
        store.mkdir(mode=0o700)
    return made


def key(path: Path, mode: int = 0o600) -> None:
    path.write_text("key\n")
    path.chmod(mode)


def test_the_doctor_misses_keys_that_are_needed(stores: tuple[Path, Path]) -> None:
    known = [
        Service(name="free", url=URL),
        Service(name="open", url=URL, auth=Auth("bearer", optional=True)),
        Service(name="one", url=URL, auth=Auth("bearer")),
        Service(name="two", url=URL, auth=Auth("bearer", credential="shared")),
    ]
    found = list(servicekeys._missing(known, stores))
    assert [fault.split()[2] for fault in found] == ["one", "two"]
    assert str(stores[0] / "shared") in found[1]
    key(stores[0] / "one")
    key(stores[1] / "shared")
    assert list(servicekeys._missing(known, stores)) == []


def test_the_doctor_finds_keys_that_others_can_read(stores: tuple[Path, Path], tmp_path: Path) -> None:
    own = os.geteuid()
    key(stores[0] / "good")
    assert list(servicekeys._open(True, stores, own)) == []
    key(stores[0] / "group", 0o640)
    key(stores[1] / "others", 0o604)
    (stores[0] / "link").symlink_to("good")
    (stores[0] / "more").mkdir()
    stores[1].chmod(0o755)
    found = "\n".join(servicekeys._open(True, stores, own))
    for what in (
        f"{stores[0]}/group has mode 0640",
        f"{stores[1]}/others has mode 0604",
        f"{stores[0]}/link is not a file",
        f"{stores[0]}/more is not a file",
        f"{stores[1]} has mode 0755",
    ):
        assert what in found
    assert "good" not in found
    assert "belongs to uid" in "\n".join(servicekeys._open(True, stores, own + 1))
    assert "is missing" in "\n".join(servicekeys._open(True, [tmp_path / "none"], own))
    assert list(servicekeys._open(False, [tmp_path / "none"], own)) == []
