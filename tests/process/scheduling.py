"""A scheduler that does as a test says, on a socket: what the chat and the command ask it can be seen."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from kai.interfaces import (
    Add,
    Differences,
    EditJob,
    GetJob,
    Job,
    JobDetails,
    Jobs,
    ListJobs,
    NoSuchJob,
    PauseJob,
    PreviewJob,
    Reconcile,
    RemoveJob,
    ResumeJob,
    RunRecord,
    Times,
    TriggerJob,
)
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Handlers, Server
from kai.lib.varlink import Busy, Empty, InvalidParameter

ZONE = "Asia/Tokyo"


def job(number: int, user: str = "alice", **fields: Any) -> Job:
    """A daily job with what a test says of it."""
    given: dict[str, Any] = {
        "name": f"job{number}", "job_type": "reminder", "prompt": f"do {number}", "schedule_type": "daily",
        "schedule_data": '{"times": ["09:00"]}', "auto_remove": False, "notify_on_check": False,
        "created_at": 1_700_000_000.0, "state": "active", "timezone": ZONE, "next": time.time() + 600, **fields,
    }  # fmt: skip
    return Job(id=number, user=user, **given)


class Scheduler:
    """Keeps jobs in memory and every call in `calls`. `refuses` is what it says to a change, `lost` how many answers
    to a removal don't arrive; a run that is started while there is `held` is over at once, and its answer waits."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {each.id: each for each in jobs}
        self.runs: dict[int, list[RunRecord]] = {}
        self.calls: list[Any] = []
        self.refuses = ""
        self.found: list[str] = []
        self.lost = self.more = 0
        self.busy = False
        self.held: asyncio.Event | None = None

    @property
    def changes(self) -> list[Any]:
        """The calls that were no mere look."""
        return [call for call in self.calls if not isinstance(call, ListJobs | GetJob | PreviewJob)]

    def handlers(self) -> Handlers:
        return {
            ListJobs: self.list, GetJob: self.get, RemoveJob: self.remove, PauseJob: self.pause, ResumeJob: self.resume,
            TriggerJob: self.trigger, PreviewJob: self.preview, Add: self.add, EditJob: self.edit,
            Reconcile: self.reconcile,
        }  # fmt: skip

    def _of(self, call: Any) -> Job:
        self.calls.append(call)
        found = self.jobs.get(call.id)
        if found is None or call.user not in ("", found.user):
            raise NoSuchJob(f"there is no job {call.id}")
        if self.refuses and not isinstance(call, GetJob):
            raise InvalidParameter(self.refuses)
        return found

    async def list(self, peer: Peer, call: ListJobs) -> Jobs:
        self.calls.append(call)
        if self.busy:
            raise Busy("all timers are being made")
        found = [each for each in self.jobs.values() if call.user in ("", each.user)]
        return Jobs([each for each in found if call.ended or each.state != "ended"], self.more)

    async def get(self, peer: Peer, call: GetJob) -> JobDetails:
        found = self._of(call)
        times = [found.next + n * 86400 for n in range(5)] if found.next else []
        return JobDetails(found, times, self.runs.get(call.id, []))

    async def remove(self, peer: Peer, call: RemoveJob) -> Empty:
        del self.jobs[self._of(call).id]
        if self.lost:
            self.lost -= 1
            raise ConnectionResetError("the answer is lost")
        return Empty()

    async def pause(self, peer: Peer, call: PauseJob) -> Job:
        return self._change(self._of(call), state="paused", next=0.0, note="paused by its user")

    async def resume(self, peer: Peer, call: ResumeJob) -> Job:
        return self._change(self._of(call), state="active", next=time.time() + 600, note="")

    async def trigger(self, peer: Peer, call: TriggerJob) -> Empty:
        found = self._of(call)
        if found.running:
            raise Busy(f"job {call.id} is running")
        self.runs.setdefault(call.id, []).insert(0, RunRecord(run=1, due=time.time(), began=time.time()))
        self._change(found, running=self.held is None)
        if self.held:
            await self.held.wait()
        return Empty()

    async def preview(self, peer: Peer, call: PreviewJob) -> Times:
        self.calls.append(call)
        if self.refuses:
            raise InvalidParameter(self.refuses)
        return Times(
            [1_800_000_000.0 + n * 86400 for n in range(call.count)], call.timezone or ZONE, ["*-*-* 09:00:00"]
        )

    async def add(self, peer: Peer, call: Add) -> Job:
        self.calls.append(call)
        if self.refuses:
            raise InvalidParameter(self.refuses)
        self.jobs[7] = job(7, call.user, name=call.name, prompt=call.prompt, next=1_800_000_000.0)
        return self.jobs[7]

    async def edit(self, peer: Peer, call: EditJob) -> Job:
        return self._of(call)

    async def reconcile(self, peer: Peer, call: Reconcile) -> Differences:
        self.calls.append(call)
        return Differences(self.found)

    def _change(self, found: Job, **fields: Any) -> Job:
        self.jobs[found.id] = msgspec.structs.replace(found, **fields)
        return self.jobs[found.id]


@asynccontextmanager
async def scheduler(path: Path, *jobs: Job) -> AsyncIterator[Scheduler]:
    """Takes the place of the scheduler at this socket."""
    made = Scheduler(*jobs)
    async with answering(path, made.handlers()):
        yield made


@asynccontextmanager
async def answering(path: Path, handlers: Handlers) -> AsyncIterator[None]:
    """Answers calls at this socket."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen(128)
        listening.setblocking(False)
        daemon = Daemon("test", {"front": listening}, instance="", one_uid=True)
        server = Server(daemon, "front", Peers(one_uid=True), handlers)
        yield
        for let_go in daemon.on_idle:
            let_go()
        await asyncio.sleep(0)
        del server
