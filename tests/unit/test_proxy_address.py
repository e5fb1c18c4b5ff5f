"""Which addresses a service may have: every way to write a forbidden one ends the same."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from kai.config import Service
from kai.interfaces import ServiceRefused, ServiceUnreachable
from kai.proxy import address, outgoing
from kai.proxy.address import check, resolve, why_not

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "169.253.255.255",
    "192.0.1.1",
    "198.17.255.255",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
    "2002:101:101::1",
]
PRIVATE = [
    "10.0.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::192.168.0.1",
    "2002:7f00:1::",
    "2002:c0a8:101::1",
    "2606:4700::5efe:10.0.0.1",
]
NEVER = [
    # metadata and link-local
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "64:ff9b::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2606:4700::5efe:a9fe:a9fe",
    # this network, multicast, broadcast, reserved, examples
    "0.0.0.0",
    "0.1.2.3",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::ffff:0.0.0.0",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "fec0::1",
    "ff02::1",
    # no addresses at all: nothing here reads 127.1 as the C library does
    "",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "[::1]",
    "127.0.0.1:80",
    "\u0661.1.1.1",
    "1.1.1.1 ",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_of_the_internet_may_be_called(text: str) -> None:
    assert why_not(text, private=False) == why_not(text, private=True) == ""


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_of_a_private_network_needs_permission(text: str) -> None:
    assert "private network" in why_not(text, private=False)
    assert why_not(text, private=True) == ""


@pytest.mark.parametrize("text", NEVER)
def test_some_addresses_are_never_called(text: str) -> None:
    assert why_not(text, private=False)
    assert why_not(text, private=True)


def test_one_bad_answer_among_good_ones_refuses_the_call() -> None:
    assert check("x.example", ["1.1.1.1", "8.8.8.8", "1.1.1.1"], private=False) == ["1.1.1.1", "8.8.8.8"]
    for bad in ("127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"):
        for answer in ([bad, "1.1.1.1"], ["1.1.1.1", bad], ["1.1.1.1"] * 100 + [bad]):
            with pytest.raises(ServiceRefused, match=r"x\.example is "):
                check("x.example", answer, private=False)


def answers(*addresses: str) -> list[Any]:
    return [
        (socket.AF_INET6, 1, 6, "", (each, 443, 0, 0)) if ":" in each else (socket.AF_INET, 1, 6, "", (each, 443))
        for each in addresses
    ]


async def test_a_name_is_resolved_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers("2606:4700::1", "1.1.1.1"))
    assert await resolve("x.example", 443, private=False) == ["2606:4700::1", "1.1.1.1"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers("1.1.1.1", "::1"))
    with pytest.raises(ServiceRefused):
        await resolve("x.example", 443, private=False)
    assert await resolve("x.example", 443, private=True) == ["1.1.1.1", "::1"]


async def test_a_name_without_an_address_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    empty: list[Any] = []
    for found in (none, lambda *_, **__: empty):
        monkeypatch.setattr(socket, "getaddrinfo", found)
        with pytest.raises(ServiceUnreachable, match=r"^x\.example: "):
            await resolve("x.example", 443, private=False)


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that changes its mind between the look and the connection gets nowhere: it isn't asked again."""
    asked: list[str] = []
    connected: list[tuple[str, int, str | None]] = []

    def lookup(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return answers("2606:4700::1", "1.1.1.1") if len(asked) == 1 else answers("169.254.169.254")

    async def connect(host: str, port: int, *, server_hostname: str | None, **_: object) -> Any:
        connected.append((host, port, server_hostname))
        if len(connected) == 1:
            raise OSError(101, "Network is unreachable")
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(asyncio, "open_connection", connect)
    service = Service(name="x", url="https://x.example/v1")
    with pytest.raises(ServiceUnreachable, match=r"^x\.example: Connection refused$"):
        await outgoing.call(service, "/v1", "", b"", lambda _: None)
    assert asked == ["x.example"]
    assert connected == [("2606:4700::1", 443, "x.example"), ("1.1.1.1", 443, "x.example")]


async def test_a_literal_address_is_looked_up_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the test before this one true of the real thing: the library asks no name service for a literal."""

    def lookup(*_: object, **__: object) -> list[Any]:
        raise AssertionError

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        monkeypatch.setattr(loop, "getaddrinfo", lookup)
        _, writer = await asyncio.open_connection("127.0.0.1", server.getsockname()[1])
        writer.close()
        await writer.wait_closed()


def test_the_tables_hold_no_address_twice_by_accident() -> None:
    for networks in (address.METADATA, address.NEVER, address.PRIVATE):
        assert len(networks) == len(set(networks))
