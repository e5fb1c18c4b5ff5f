"""A kai.Scheduler on its socket whose runs and timers are played, and whose callers are who the test says."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from kai.config import Config, User
from kai.config.kaiyaml import Jobs as JobsConfig
from kai.config.kaiyaml import Kai
from kai.interfaces import (
    Add,
    Deliver,
    Job,
    Stored,
)
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.peers import BOT, OPERATOR, SUPERVISOR, Peer, Peers
from kai.lib.server import Server
from kai.lib.varlink import Call
from kai.scheduler.jobs import JobRow, JobStore, open_tables
from kai.scheduler.service import Service

ALICE = Peer(1, 1, frozenset({SUPERVISOR}), "alice")
BOB = Peer(2, 1, frozenset({SUPERVISOR}), "bob")
GONE = Peer(3, 1, frozenset({SUPERVISOR}), "carol")
THE_BOT = Peer(4, 1, frozenset({BOT}))
ROOT = Peer(0, 1, frozenset({OPERATOR}))
DAILY: dict[str, Any] = {"schedule_type": "daily", "schedule_data": '{"times": ["09:00"]}'}


class Reconciler:
    """Plays what makes timers; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.started: list[int] = []
        self.gone: list[JobRow] = []
        self.faults: dict[int, str] = {}
        self.fault = ""
        self.going_on: set[int] = set()
        self.start_fault: Exception | None = None

    async def changed(self, job_ids: Iterable[int] = ()) -> dict[int, str]:
        ids = list(job_ids)
        self.told += ids
        return {job: self.fault for job in ids if self.fault}

    async def start(self, job: int) -> None:
        if self.start_fault:
            raise self.start_fault
        self.started.append(job)

    async def removed(self, job: JobRow) -> None:
        self.gone.append(job)

    def running(self, job: int) -> bool:
        return job in self.going_on


class Identity:
    """The kernel's word for who connects is the test's to choose."""

    def __init__(self) -> None:
        self.peer: Peer = ROOT

    def identify(self, connection: socket.socket) -> Peer:
        return self.peer


class Bench:
    """A running service; `say` calls it as a peer."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.sockets = directory, list[socket.socket]()
        self.config = Config(
            Kai(timezone="Europe/Berlin", jobs=JobsConfig(limit=5)),
            (User(telegram_id=1, name="alice"), User(telegram_id=2, name="bob", timezone="Asia/Tokyo")),
        )
        self.reconciler, self.identity, self.who = Reconciler(), Identity(), asyncio.Lock()
        self.delivered: dict[str, Deliver] = {}
        self.deliver_fault: Exception | None = None
        self.start()

    def start(self) -> None:
        self.daemon = Daemon("kai-scheduler", {"scheduler": self.listen("scheduler.sock")}, instance="", one_uid=True)
        self.daemon.runtime_dir = self.directory
        self.store = open_tables(self.directory)
        self.jobs = JobStore(self.store)
        self.service = Service(self.daemon, lambda: self.config, self.jobs, self.reconciler)
        self.server = Server(self.daemon, "scheduler", cast(Peers, self.identity), self.service.handlers())

    def stop(self) -> None:
        self.service.close()
        self.server.listener.let_go()
        self.store.close()

    def listen(self, name: str) -> socket.socket:
        path = self.directory / name
        path.unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX)
        made.bind(os.fspath(path))
        made.listen(128)
        made.setblocking(False)
        self.sockets.append(made)
        return made

    def bot(self) -> None:
        """A bot that takes what is delivered."""

        async def deliver(peer: Peer, call: Deliver, descriptors: list[int]) -> Stored:
            if self.deliver_fault:
                raise self.deliver_fault
            self.delivered.setdefault(call.key, call)
            return Stored(id=len(self.delivered))

        daemon = Daemon("kai-bot", {"bot": self.listen("bot.sock")}, instance="", one_uid=True)
        Server(daemon, "bot", Peers(one_uid=True), {Deliver: deliver})

    async def say(self, peer: Peer, call: Call[Any]) -> Any:
        async with self.who:
            self.identity.peer = peer
            return await Client(self.directory / "scheduler.sock").call(call)

    async def add(self, peer: Peer = ALICE, **values: Any) -> Job:
        given: dict[str, Any] = {"name": "backups", "prompt": "check the backups", **DAILY, **values}
        return cast(Job, await self.say(peer, Add(**given)))

    async def row(self, job: int) -> JobRow:
        row = await self.jobs.get(job)
        assert row
        return row

    async def wait(self, what: Any) -> None:
        async with asyncio.timeout(15):
            while not what():
                await asyncio.sleep(0.02)


def local(hours: float, zone: str = "Europe/Berlin") -> str:
    return (datetime.now(ZoneInfo(zone)) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S")


def once(hours: float, zone: str = "Europe/Berlin") -> dict[str, Any]:
    return {"schedule_type": "once", "schedule_data": json.dumps({"run_at": local(hours, zone)})}
