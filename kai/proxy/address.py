"""Which addresses a service may have: those of the internet, and with `allow_private` those of private networks.

The tables are those of IANA's registries of special-purpose addresses, written out: what the library calls global
differs between its versions. An IPv6 address that carries an IPv4 one is judged by both.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from kai.interfaces import ServiceRefused, ServiceUnreachable

Address = IPv4Address | IPv6Address
RESOLVERS: Final = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")
"""A slow name service must not take the threads that everything else uses."""
MOST = 32


def _networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(word) for word in text.split()]


PRIVATE: Final = _networks(
    "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 ::1/128 fc00::/7"  # RFC 1918, 6598, 1122, 4193
)
"""Private networks, carriers' shared addresses, this host: what `allow_private` allows."""
METADATA: Final = _networks(
    "169.254.0.0/16 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32 fd00:ec2::254/128 fd20:ce::254/128"
)
"""Where clouds tell a host its own secrets; 169.254/16 is link-local as a whole."""
NEVER: Final = _networks(
    "0.0.0.0/8 192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.175.48.0/24 "
    "198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
    "2001::/23 2001:db8::/32 3fff::/20"
)
"""This network, tests, examples, multicast, reserved: no service is there."""
GLOBAL_V6: Final = ipaddress.ip_network("2000::/3")
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
SIX_TO_FOUR: Final = ipaddress.ip_network("2002::/16")
MAPPED: Final = ipaddress.ip_network("::ffff:0:0/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def why_not(text: str, *, private: bool) -> str:
    """Why no call may go to this address, in a few words; "" when it may. `private` allows private networks."""
    if "%" in text:
        return "link-local"  # a scope
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "no address"
    return _judge(address, private=private)


def _judge(address: Address, *, private: bool) -> str:
    inside = _carried(address)
    if inside is not None:
        return _judge(inside, private=private)
    for networks, name in ((METADATA, "a metadata or link-local address"), (NEVER, "a reserved address")):
        if any(address in network for network in networks):
            return name
    if any(address in network for network in PRIVATE):
        return "" if private else "an address of a private network"
    if isinstance(address, IPv6Address):
        if address not in GLOBAL_V6:
            return "a reserved address"
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return _judge(_low(address), private=private)
    return ""


def _carried(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for: mapped, translated (NAT64), tunnelled (6to4)."""
    if isinstance(address, IPv4Address):
        return None
    if address in MAPPED or address in NAT64:
        return _low(address)
    if address in SIX_TO_FOUR:
        return IPv4Address((int(address) >> 80) & 0xFFFFFFFF)
    return None


def _low(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def check(host: str, addresses: Sequence[str], *, private: bool) -> list[str]:
    """The addresses of a host, each once. Raises ServiceRefused when a single one of them may not be called.

    One bad answer among good ones is no accident that should be worked around.
    """
    for address in addresses:
        reason = why_not(address, private=private)
        if reason:
            raise ServiceRefused(f"{host} is {address}, {reason}: kai-proxy doesn't call it")
    return list(dict.fromkeys(addresses))[:MOST]


async def resolve(host: str, port: int, *, private: bool) -> list[str]:
    """The checked addresses of a host, in the order of the name service. Nothing else may be connected to.

    Raises ServiceRefused, and ServiceUnreachable when the name has none.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(RESOLVERS, _lookup, host, port)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no such name"
        raise ServiceUnreachable(f"{host}: {reason}") from None
    if not found:
        raise ServiceUnreachable(f"{host}: the name has no address")
    return check(host, found, private=private)


def _lookup(host: str, port: int) -> list[str]:
    return [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
