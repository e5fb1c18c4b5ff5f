"""PID 1 over the system bus: the few methods of its manager that kai-timers needs, many of them under way at a time.

A connection is made when something is asked and kept until it breaks; what was under way then is Unreachable. It also
breaks when PID 1 leaves the bus for a moment (daemon-reexec): who waits for a job would wait in vain.

Sources: org.freedesktop.systemd1(5), https://dbus.freedesktop.org/doc/dbus-specification.html
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    Parser,
    new_method_call,
)
from jeepney.auth import AuthenticationError, Authenticator

from kai.timers.systemd import NO_SUCH_UNIT, Clock, Loaded, Property, Refused, Unreachable

SYSTEM_BUS = Path("/run/dbus/system_bus_socket")
TIMEOUT = 25.0
"""Seconds for an answer, and for a job's end: a daemon-reload of thousands of units takes a few."""
MOST_ENDED = 4096
"""Ends of jobs that are kept for whoever asks for them: the end may be told before the job's name is read."""
MOST_BYTES = 1 << 16
DRIVER, PID_1 = "org.freedesktop.DBus", "org.freedesktop.systemd1"
BUS = DBusAddress("/org/freedesktop/DBus", bus_name=DRIVER, interface=DRIVER)
MANAGER = DBusAddress("/org/freedesktop/systemd1", bus_name=PID_1, interface=f"{PID_1}.Manager")
MATCHES = [
    f"type='signal',sender='{PID_1}',interface='{PID_1}.Manager',member='JobRemoved'",
    f"type='signal',sender='{DRIVER}',interface='{DRIVER}',member='NameOwnerChanged',arg0='{PID_1}'",
]
logger = logging.getLogger(__name__)


def object_path(unit: str) -> str:
    """Where a unit is found on the bus: what isn't a letter or a digit is written as _ and its code."""
    escaped = "".join(c if c.isascii() and c.isalnum() else "".join(f"_{b:02x}" for b in c.encode()) for c in unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


class Connection:
    """One connection to the bus, as long as it holds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.serials = count(1)
        self.answers: dict[int, asyncio.Future[tuple[Any, ...]]] = {}
        self.jobs: dict[str, asyncio.Future[str]] = {}
        self.ended: OrderedDict[str, str] = OrderedDict()
        self.owner = ""
        self.reading: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path) -> Connection:
        """Raises OSError, ValueError and EOFError."""
        reader, writer = await asyncio.open_unix_connection(os.fspath(path), limit=MOST_BYTES)
        made = cls(reader, writer)
        try:
            await made._introduce()
        except BaseException:
            made.close()
            raise
        return made

    async def _introduce(self) -> None:
        authenticator = Authenticator()
        for line in authenticator:
            self.writer.write(line)
            if not authenticator.authenticated:
                data = await self.reader.read(1024)
                if not data:
                    raise EOFError("the bus closed the connection before it let us in")
                authenticator.feed(data)
        self.writer.write(b"BEGIN\r\n")
        self.reading = asyncio.create_task(self._read())
        await self.ask(new_method_call(BUS, "Hello"))
        await asyncio.gather(*(self.ask(new_method_call(BUS, "AddMatch", "s", (rule,))) for rule in MATCHES))
        (self.owner,) = await self.ask(new_method_call(BUS, "GetNameOwner", "s", (PID_1,)))

    @property
    def open_(self) -> bool:
        return self.reading is not None and not self.reading.done()

    async def ask(self, message: Message) -> tuple[Any, ...]:
        """The answer's values. Raises Refused with the peer's error; Unreachable when the connection ends."""
        serial = next(self.serials)
        answer: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self.answers[serial] = answer
        try:
            if not self.open_:
                raise Unreachable("the connection to the system bus has ended")
            message.header.flags |= MessageFlag.no_auto_start
            self.writer.write(message.serialise(serial))
            return await answer
        finally:
            del self.answers[serial]

    async def job_ended(self, job: str) -> str:
        """The result of a job, `done` when all is well."""
        if job in self.ended:
            return self.ended.pop(job)
        if not self.open_:
            raise Unreachable("the connection to the system bus has ended")
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.jobs[job] = waiting
        try:
            return await waiting
        finally:
            del self.jobs[job]

    def close(self) -> None:
        if self.reading:
            self.reading.cancel()
        self.writer.close()

    async def _read(self) -> None:
        why = "the connection to the system bus has ended"
        try:
            parser = Parser()
            while data := await self.reader.read(MOST_BYTES):
                for message in parser.feed(data):
                    self._take(message)
        except (OSError, ValueError, EOFError) as error:
            why = f"the connection to the system bus has ended: {error}"
        finally:
            self.writer.close()
            lost: list[asyncio.Future[Any]] = [*self.answers.values(), *self.jobs.values()]
            for waiting in lost:
                if not waiting.done():
                    waiting.set_exception(Unreachable(why))

    def _take(self, message: Message) -> None:
        header = message.header
        if header.message_type == MessageType.signal:
            self._signal(header.fields, message.body)
            return
        answer = self.answers.get(header.fields.get(HeaderFields.reply_serial, 0))
        if answer is None or answer.done():
            return  # nobody waits for it any more
        if header.message_type == MessageType.method_return:
            answer.set_result(message.body)
        elif header.message_type == MessageType.error:
            name = str(header.fields.get(HeaderFields.error_name, "")).rpartition(".")[2]
            said = message.body[0] if message.body and isinstance(message.body[0], str) else ""
            lost = name in ("NoReply", "Disconnected", "Timeout", "TimedOut", "ServiceUnknown", "NameHasNoOwner")
            answer.set_exception(Unreachable(f"systemd doesn't answer: {said}") if lost else Refused(name, said))

    def _signal(self, fields: dict[HeaderFields, Any], body: tuple[Any, ...]) -> None:
        """The sender is told by the bus: what others send as if it came from PID 1 is not listened to."""
        sender, member = fields.get(HeaderFields.sender), fields.get(HeaderFields.member)
        if sender == DRIVER and member == "NameOwnerChanged" and body[0] == PID_1:
            logger.info("systemd left the bus or came back to it")
            raise EOFError("systemd left the bus for a moment")
        if sender == self.owner and member == "JobRemoved":
            _, job, _, result = body
            if waiting := self.jobs.get(job):
                if not waiting.done():
                    waiting.set_result(result)
                return
            self.ended[job] = result
            if len(self.ended) > MOST_ENDED:
                self.ended.popitem(last=False)


class Bus:
    """PID 1; see `Systemd` for what each method promises."""

    def __init__(self, path: Path = SYSTEM_BUS, *, timeout: float = TIMEOUT) -> None:
        self.path, self.timeout = path, timeout
        self.connection: Connection | None = None
        self.opening = asyncio.Lock()

    async def make(self, unit: str, properties: list[Property]) -> None:
        call = new_method_call(MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", properties, []))
        await self._job(call, f"the start of {unit}")

    async def stop(self, unit: str) -> None:
        await self._job(new_method_call(MANAGER, "StopUnit", "ss", (unit, "replace")), f"the stop of {unit}")

    async def start(self, unit: str) -> None:
        await self._ask(new_method_call(MANAGER, "StartUnit", "ss", (unit, "replace")))

    async def reset_failed(self, unit: str) -> None:
        await self._ask(new_method_call(MANAGER, "ResetFailedUnit", "s", (unit,)))

    async def units(self, pattern: str) -> list[Loaded]:
        (found,) = await self._ask(new_method_call(MANAGER, "ListUnitsByPatterns", "asas", ([], [pattern])))
        return [Loaded(name=unit[0], description=unit[1], active=unit[3]) for unit in found]

    async def elapse(self, timer: str, clock: Clock) -> int:
        address = DBusAddress(object_path(timer), bus_name=PID_1, interface="org.freedesktop.DBus.Properties")
        try:
            ((_, value),) = await self._ask(
                new_method_call(address, "Get", "ss", (f"{PID_1}.Timer", f"NextElapseUSec{clock}"))
            )
        except Refused as error:
            if error.name in (NO_SUCH_UNIT, "UnknownObject", "UnknownInterface", "UnknownProperty"):
                return 0
            raise
        return int(value)

    async def close(self) -> None:
        if self.connection:
            self.connection.close()
            if self.connection.reading:
                with suppress(asyncio.CancelledError):
                    await self.connection.reading
            self.connection = None

    async def _job(self, call: Message, what: str) -> None:
        """Ask for a job and wait for its end."""
        try:
            async with asyncio.timeout(self.timeout):
                connection = await self._connected()
                (job,) = await connection.ask(call)
                result = await connection.job_ended(job)
        except TimeoutError:
            raise Unreachable(f"{what}: systemd didn't tell its end within {self.timeout:g} s") from None
        if result != "done":
            raise Refused("JobFailed", f"{what} ended with {result!r}")

    async def _ask(self, call: Message) -> tuple[Any, ...]:
        try:
            async with asyncio.timeout(self.timeout):
                return await (await self._connected()).ask(call)
        except TimeoutError:
            member = call.header.fields[HeaderFields.member]
            raise Unreachable(f"systemd didn't answer to {member} within {self.timeout:g} s") from None

    async def _connected(self) -> Connection:
        async with self.opening:
            if self.connection is None or not self.connection.open_:
                try:
                    self.connection = await Connection.open(self.path)
                except (OSError, EOFError, AuthenticationError, Refused) as error:
                    raise Unreachable(f"{self.path}: the system bus can't be reached: {error}") from None
            return self.connection
