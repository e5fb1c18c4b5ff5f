"""kai-timers on a bus: its own D-Bus against a bus and a PID 1 of a few lines, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

from kai.interfaces import ListTimers, SetTimers, Timer
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.varlink import Busy
from kai.timers import main
from kai.timers.bus import Bus, object_path
from kai.timers.systemd import Loaded, Refused, Unreachable

MANAGER = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")
DRIVER = DBusAddress("/org/freedesktop/DBus", interface="org.freedesktop.DBus")
UNIT = "kai-job@7.timer"


class Played:
    """A bus with systemd on it. Each answer takes `delay` seconds; `answers` replaces what a method does."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: dict[str, Callable[[Message], Message | None]] = {}
        self.result = "done"
        self.sender = ":1.0"
        self.early = False
        self.delay = 0.0
        self.connections = 0
        self.serials, self.jobs = count(1), count(1)
        self.writers: list[asyncio.StreamWriter] = []
        self.under_way: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        hello = await reader.readuntil(b"\r\n")
        assert hello == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
        writer.write(b"OK 0123456789abcdef0123456789abcdef\r\n")
        assert await reader.readuntil(b"\r\n") == b"BEGIN\r\n"
        parser = Parser()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for message in parser.feed(data):
                    task = asyncio.create_task(self.answer(message, writer))
                    self.under_way.add(task)
                    task.add_done_callback(self.under_way.discard)
        writer.close()

    def send(self, message: Message, writer: asyncio.StreamWriter, sender: str) -> None:
        message.header.fields[HeaderFields.sender] = sender
        writer.write(message.serialise(next(self.serials)))

    async def answer(self, message: Message, writer: asyncio.StreamWriter) -> None:
        assert message.header.message_type == MessageType.method_call
        member = message.header.fields[HeaderFields.member]
        self.calls.append((member, message.body))
        await asyncio.sleep(self.delay)
        if member in self.answers:
            if reply := self.answers[member](message):
                self.send(reply, writer, self.sender)
        elif member in ("Hello", "AddMatch", "GetNameOwner"):
            said = {"Hello": ("s", (":1.9",)), "AddMatch": (None, ()), "GetNameOwner": ("s", (":1.0",))}
            self.send(new_method_return(message, *said[member]), writer, "org.freedesktop.DBus")
        elif member in ("StartTransientUnit", "StopUnit", "StartUnit"):
            job = next(self.jobs)
            path = f"/org/freedesktop/systemd1/job/{job}"
            ended = new_signal(MANAGER, "JobRemoved", "uoss", (job, path, message.body[0], self.result))
            if self.early:
                self.send(ended, writer, self.sender)
            self.send(new_method_return(message, "o", (path,)), writer, ":1.0")
            if not self.early:
                self.send(ended, writer, self.sender)
        elif member == "Get":
            self.send(new_method_return(message, "v", (("t", 1_798_113_600_000_000),)), writer, ":1.0")
        elif member == "ListUnitsByPatterns":
            row = (UNIT, "Kai job 7, revision 3", "loaded", "active", "waiting", "", "/u", 0, "", "/")
            self.send(new_method_return(message, "a(ssssssouso)", ([row],)), writer, ":1.0")
        else:
            self.send(new_method_return(message), writer, ":1.0")


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    made = Played()
    server = await asyncio.start_unix_server(made.serve, tmp_path / "bus")
    yield made
    server.close()
    for writer in made.writers:
        writer.close()
    await asyncio.sleep(0)


@pytest.fixture
async def bus(tmp_path: Path, played: Played) -> AsyncIterator[Bus]:
    made = Bus(tmp_path / "bus", timeout=5)
    yield made
    await made.close()


def error(name: str, text: str = "no") -> Callable[[Message], Message]:
    return lambda message: new_error(message, name, "s", (text,))


async def test_a_timer_is_made_with_its_properties_and_without_other_units(bus: Bus, played: Played) -> None:
    properties = [("Description", ("s", "x")), ("TimersCalendar", ("a(ss)", [("OnCalendar", "daily")]))]
    await bus.make(UNIT, properties)
    member, body = played.calls[-1]
    assert (member, body) == ("StartTransientUnit", (UNIT, "fail", properties, []))


async def test_each_method_asks_for_one_thing(bus: Bus, played: Played) -> None:
    await bus.stop(UNIT)
    await bus.start("kai-job@7.service")
    await bus.reset_failed(UNIT)
    assert await bus.elapse(UNIT, "Realtime") == 1_798_113_600_000_000
    assert await bus.units("kai-job@*.timer") == [Loaded(UNIT, "Kai job 7, revision 3", "active")]
    asked = [call for call in played.calls if call[0] not in ("Hello", "AddMatch", "GetNameOwner")]
    assert asked == [
        ("StopUnit", (UNIT, "replace")),
        ("StartUnit", ("kai-job@7.service", "replace")),
        ("ResetFailedUnit", (UNIT,)),
        ("Get", ("org.freedesktop.systemd1.Timer", "NextElapseUSecRealtime")),
        ("ListUnitsByPatterns", ([], ["kai-job@*.timer"])),
    ]
    assert object_path(UNIT) == "/org/freedesktop/systemd1/unit/kai_2djob_407_2etimer"


async def test_many_calls_share_a_connection_and_wait_together(bus: Bus, played: Played) -> None:
    played.delay = 0.1
    began = time.monotonic()
    await asyncio.gather(*(bus.make(f"kai-job@{job}.timer", []) for job in range(1, 101)))
    assert time.monotonic() - began < 8, "one after the other it is 10 s"
    assert played.connections == 1


async def test_a_job_that_ends_before_it_is_named_has_ended(bus: Bus, played: Played) -> None:
    played.early = True
    async with asyncio.timeout(20):
        await bus.make(UNIT, [])


async def test_what_systemd_says_is_told_by_its_name(bus: Bus, played: Played) -> None:
    played.answers["StartTransientUnit"] = error("org.freedesktop.systemd1.UnitExists", "Unit was already loaded")
    with pytest.raises(Refused, match="UnitExists: Unit was already loaded") as refused:
        await bus.make(UNIT, [])
    assert refused.value.name == "UnitExists"
    played.answers["Get"] = error("org.freedesktop.DBus.Error.UnknownObject")
    assert await bus.elapse(UNIT, "Realtime") == 0
    played.answers["Get"] = error("org.freedesktop.DBus.Error.AccessDenied")
    with pytest.raises(Refused):
        await bus.elapse(UNIT, "Realtime")
    played.result = "failed"
    with pytest.raises(Refused, match="JobFailed"):
        await bus.stop(UNIT)


@pytest.mark.parametrize("name", ["NoReply", "ServiceUnknown", "NameHasNoOwner"])
async def test_the_bus_without_systemd_is_unreachable(name: str, bus: Bus, played: Played) -> None:
    played.answers["StopUnit"] = error(f"org.freedesktop.DBus.Error.{name}")
    with pytest.raises(Unreachable):
        await bus.stop(UNIT)


async def test_nobody_else_can_tell_the_end_of_a_job(bus: Bus, played: Played) -> None:
    bus.timeout = 0.3
    played.sender = ":1.66"
    with pytest.raises(Unreachable, match="didn't tell its end"):
        await bus.make(UNIT, [])


async def test_an_answer_that_does_not_come_is_not_waited_for_forever(bus: Bus, played: Played) -> None:
    bus.timeout = 0.3
    played.answers["Get"] = lambda message: None
    with pytest.raises(Unreachable, match="Get"):
        await bus.elapse(UNIT, "Realtime")
    played.answers.clear()
    assert await bus.elapse(UNIT, "Realtime"), "the connection is still good"
    assert played.connections == 1


async def test_when_systemd_leaves_the_bus_waiting_ends_and_the_next_call_works(bus: Bus, played: Played) -> None:
    played.answers["StopUnit"] = lambda message: None
    waiting = asyncio.create_task(bus.stop(UNIT))
    while not any(member == "StopUnit" for member, _ in played.calls):
        await asyncio.sleep(0.01)
    changed = new_signal(DRIVER, "NameOwnerChanged", "sss", ("org.freedesktop.systemd1", ":1.0", ""))
    played.send(changed, played.writers[-1], "org.freedesktop.DBus")
    with pytest.raises(Unreachable, match="left the bus"):
        await waiting
    played.answers.clear()
    await bus.stop(UNIT)
    assert played.connections == 2


async def test_a_bus_that_goes_away_ends_all_waiting(bus: Bus, played: Played) -> None:
    played.answers["StopUnit"] = lambda message: None
    waiting = [asyncio.create_task(bus.stop(f"kai-job@{job}.timer")) for job in (1, 2)]
    while sum(member == "StopUnit" for member, _ in played.calls) < 2:
        await asyncio.sleep(0.01)
    played.writers[-1].close()
    for task in waiting:
        with pytest.raises(Unreachable):
            await task


async def test_noise_instead_of_a_bus_is_unreachable(tmp_path: Path) -> None:
    async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-noise\r\n" * 1000)
        await reader.read(100)
        writer.close()

    server = await asyncio.start_unix_server(noise, tmp_path / "noise")
    with pytest.raises(Unreachable, match="can't be reached"):
        await Bus(tmp_path / "noise").stop(UNIT)
    server.close()
    with pytest.raises(Unreachable, match="can't be reached"):
        await Bus(tmp_path / "missing").stop(UNIT)


async def test_the_daemon_answers_on_its_socket_and_leaves_when_it_is_idle(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "SYSTEM_BUS", tmp_path / "bus")
    monkeypatch.setattr(main, "STAMPS", tmp_path)
    monkeypatch.setattr(main, "IDLE", 1.0)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(tmp_path / "timers.sock"))
        listening.listen(8)
        listening.setblocking(False)
        daemon = Daemon("kai-timers", {"timers": listening}, instance="", one_uid=True)
        work = asyncio.create_task(main.serve(daemon))
        client = Client(tmp_path / "timers.sock")
        answer = await client.call(SetTimers([Timer(job=7, revision=3, calendar=["daily"])]))
        assert [timer.next for timer in answer.timers] == [1_798_113_600]
        assert [timer.revision for timer in (await client.call(ListTimers())).timers] == [3]
        played.answers["ListUnitsByPatterns"] = error("org.freedesktop.DBus.Error.NoReply")
        with pytest.raises(Busy):
            await client.call(ListTimers())
        await asyncio.wait_for(work, 10)
