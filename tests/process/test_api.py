"""The API of kai-api(7): real supervisor, bot and scheduler, and an HTTP client at the agent's own socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import BOB, Stages
from .jobset import JobSet, at

SETTINGS = {"api": {"requests": 100_000, "messages": 100_000}, "approvals": "auto"}
ONCE = {"prompt": "Tea is ready", "schedule_type": "once"}


class Desk:
    """A set with jobs, and Alice's agent's way to Kai."""

    def __init__(self, jobs: JobSet, stack: AsyncExitStack) -> None:
        self.jobs, self.stage, self._stack = jobs, jobs.stage, stack

    async def client(self, user: str = "alice") -> httpx.AsyncClient:
        path = self.stage.launcher.runtime / "api" / f"{user}.sock"
        transport = httpx.AsyncHTTPTransport(uds=os.fspath(path))
        made = httpx.AsyncClient(transport=transport, base_url="http://kai", timeout=60)
        return await self._stack.enter_async_context(made)


@pytest.fixture
async def desk(stages: Stages) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        yield Desk(JobSet(await stages(settings=SETTINGS)), stack)


@pytest.fixture
async def alice(desk: Desk) -> httpx.AsyncClient:
    return await desk.client()


def work(desk: Desk, name: str = "work") -> Path:
    return desk.stage.launcher.directory / "state/users/alice" / name


async def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


# ---- jobs ----


async def test_a_job_is_made_seen_changed_and_removed(alice: httpx.AsyncClient) -> None:
    made = await alice.post("/api/schedule", json={**ONCE, "name": "tea", "schedule_data": {"run_at": at(3600)}})
    assert made.status_code == 200, made.text
    assert set(made.json()) == {"job_id", "name", "next_run_at"}
    number = made.json()["job_id"]
    (job,) = (await alice.get("/api/jobs")).json()
    assert {
        "id": number, "name": "tea", "job_type": "reminder", "prompt": "Tea is ready", "schedule_type": "once",
        "auto_remove": False, "notify_on_check": False, "state": "active",
    }.items() <= job.items()  # fmt: skip
    assert "run_at" in job["schedule_data"]
    change = {"name": "more tea", "schedule_type": "daily", "schedule_data": {"times": ["09:00", "18:30"]}}
    assert (await alice.patch(f"/api/jobs/{number}", json=change)).json() == {"updated": number}
    found = (await alice.get(f"/api/jobs/{number}")).json()
    assert (found["name"], found["schedule_type"], len(found["times"]) > 1) == ("more tea", "daily", True)
    assert (await alice.delete(f"/api/jobs/{number}")).json() == {"deleted": number}
    assert (await alice.get("/api/jobs")).json() == []
    assert "no such job" in await refused(await alice.delete(f"/api/jobs/{number}"), 404)


async def test_the_data_of_a_schedule_may_be_a_text_that_holds_it(alice: httpx.AsyncClient) -> None:
    data = '{"seconds": 3600}'
    made = await alice.post("/api/schedule", json={"prompt": "x", "schedule_type": "interval", "schedule_data": data})
    assert made.status_code == 200, made.text
    assert (await alice.get("/api/jobs")).json()[0]["schedule_data"] == {"seconds": 3600}


async def test_a_job_of_the_agent_arrives_in_the_chat(desk: Desk, alice: httpx.AsyncClient) -> None:
    made = await alice.post("/api/schedule", json={**ONCE, "schedule_data": {"run_at": at(4)}})
    assert made.status_code == 200, made.text
    await desk.jobs.delivered("Tea is ready")


async def test_claude_is_another_word_for_agent(alice: httpx.AsyncClient) -> None:
    data = {**ONCE, "job_type": "claude", "schedule_data": {"run_at": at(900)}, "auto_remove": True}
    await alice.post("/api/schedule", json=data)
    (job,) = (await alice.get("/api/jobs")).json()
    assert (job["job_type"], job["auto_remove"]) == ("agent", True)


async def test_a_job_can_be_paused_and_resumed(alice: httpx.AsyncClient) -> None:
    data = {"prompt": "x", "schedule_type": "interval", "schedule_data": {"seconds": 600}}
    number = (await alice.post("/api/schedule", json=data)).json()["job_id"]
    for paused, state in ((True, "paused"), (False, "active")):
        assert (await alice.patch(f"/api/jobs/{number}", json={"paused": paused})).status_code == 200
        assert (await alice.get(f"/api/jobs/{number}")).json()["state"] == state


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt: missing"),
        ({"prompt": 5, "schedule_type": "once", "schedule_data": {}}, "prompt: expected str"),
        ({**ONCE, "schedule_data": {}}, "schedule_data.run_at: missing"),
        ({**ONCE, "schedule_data": {"run_at": "2001-01-01T00:00"}}, "schedule_data.run_at: "),
        ({**ONCE, "schedule_data": "no json"}, "schedule_data: not JSON"),
        ({**ONCE, "schedule_data": 7}, "schedule_data: "),
        ({**ONCE, "schedule_type": "monthly", "schedule_data": {}}, "schedule_type: expected once"),
        ({**ONCE, "schedule_data": {"run_at": "2099-01-01T00:00"}, "job_type": "root"}, "job_type: expected reminder"),
        ({**ONCE, "schedule_data": {"run_at": "2099-01-01T00:00"}, "colour": 1}, "colour: unknown, expected one of"),
        ({**ONCE, "schedule_data": {"run_at": "2099-01-01T00:00"}, "auto_remove": "yes"}, "auto_remove: expected bool"),
        ([], "body: expected object"),
    ],
)
async def test_a_fault_names_its_field(alice: httpx.AsyncClient, body: Any, field: str) -> None:
    assert (await refused(await alice.post("/api/schedule", json=body), 400)).startswith(field)
    assert (await alice.get("/api/jobs")).json() == []


# ---- who is meant ----


async def test_a_request_may_name_its_own_user_and_nobody_else(desk: Desk, alice: httpx.AsyncClient) -> None:
    for own in ({"chat_id": 1001}, {"chat_id": "1001"}, {"user_id": 1001}, {"user": "alice"}, {"chat_id": None}):
        assert (await alice.post("/api/send-message", json={"text": "mine", **own})).status_code == 200, own
    others: list[dict[str, Any]] = [{"chat_id": BOB}, {"chat_id": str(BOB)}, {"user_id": BOB}, {"user": "bob"}]
    others += [{"chat_id": True}, {"chat_id": [1001]}, {"user": 1001}, {"chat_id": "1001 "}]
    for other in others:
        assert "isn't yours" in await refused(await alice.post("/api/send-message", json={"text": "no", **other}), 403)
        query = {key: str(value) for key, value in other.items()}
        assert "isn't yours" in await refused(await alice.get("/api/jobs", params=query), 403), query
    assert desk.stage.shown(BOB) == []


async def test_another_users_jobs_are_not_there(desk: Desk, alice: httpx.AsyncClient) -> None:
    bob = await desk.client("bob")
    number = (await bob.post("/api/schedule", json={**ONCE, "schedule_data": {"run_at": at(900)}})).json()["job_id"]
    headers = {"X-Chat-Id": str(BOB), "X-User": "bob", "X-Forwarded-User": "bob", "Authorization": "Bearer bob"}
    assert (await alice.get("/api/jobs", headers=headers)).json() == []
    assert "no such job" in await refused(await alice.get(f"/api/jobs/{number}", headers=headers), 404)
    assert "no such job" in await refused(await alice.delete(f"/api/jobs/{number}", headers=headers), 404)
    await refused(await alice.patch(f"/api/jobs/{number}", json={"prompt": "mine now"}), 404)
    assert [job["prompt"] for job in (await bob.get("/api/jobs")).json()] == ["Tea is ready"]


# ---- messages and files ----


async def test_a_message_reaches_the_users_chat(desk: Desk, alice: httpx.AsyncClient) -> None:
    assert (await alice.post("/api/send-message", json={"text": "**half** way"})).json() == {"status": "sent"}
    await desk.stage.answer("half way")
    assert "text: empty" in await refused(await alice.post("/api/send-message", json={"text": " "}), 400)
    assert "at most 40000" in await refused(await alice.post("/api/send-message", json={"text": "x" * 40_001}), 400)


async def test_a_file_is_sent_by_its_path_with_a_caption(desk: Desk, alice: httpx.AsyncClient) -> None:
    await alice.get("/health")  # makes the directories
    (work(desk) / "notes.txt").write_text("to be read")
    sent = await alice.post("/api/send-file", json={"path": "notes.txt", "caption": "the notes"})
    assert sent.json() == {"status": "sent", "file": "notes.txt"}
    document = await desk.stage.api.wait_for(lambda: next(iter(documents(desk)), None))
    assert (document.text, document.wire["document"]["file_name"]) == ("the notes", "notes.txt")


def documents(desk: Desk) -> list[Any]:
    return [message for message in desk.stage.api.messages(1001) if message.by_bot and "document" in message.wire]


async def test_what_isnt_the_agents_to_send_is_403_and_what_isnt_there_404(
    desk: Desk, alice: httpx.AsyncClient
) -> None:
    await alice.get("/health")
    (work(desk) / "link").symlink_to("/etc/passwd")
    (work(desk, "history") / "x.jsonl").write_text("{}")
    for path, status in (
        ("/etc/passwd", 403), ("../history/x.jsonl", 403), (f"{work(desk, 'history')}/x.jsonl", 403), ("link", 403),
        ("gone.txt", 404), ("", 400), ("a\0b", 400),
    ):  # fmt: skip
        assert (await refused(await alice.post("/api/send-file", json={"path": path}), status)).startswith("path: ")
    (work(desk) / "empty").touch()
    await refused(await alice.post("/api/send-file", json={"path": "empty"}), 400)
    with (work(desk) / "big").open("wb") as file:
        file.truncate((50 << 20) + 1)
    await refused(await alice.post("/api/send-file", json={"path": "big"}), 413)


async def test_a_file_may_come_as_its_bytes(desk: Desk, alice: httpx.AsyncClient) -> None:
    query = {"name": "../a\nplot.csv", "caption": "half a year"}
    headers = {"Content-Type": "text/csv"}
    sent = await alice.post("/api/send-file", params=query, content=b"a,b\n" * 1000, headers=headers)
    assert sent.json() == {"status": "sent", "file": "_a_plot.csv"}
    document = await desk.stage.api.wait_for(lambda: next(iter(documents(desk)), None))
    assert document.text == "half a year"
    assert "name: missing" in await refused(await alice.post("/api/send-file", content=b"x", headers=headers), 400)
    assert "empty" in await refused(await alice.post("/api/send-file?name=x", content=b"", headers=headers), 400)


async def test_a_file_of_more_than_50_mb_is_refused_while_it_comes(alice: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    headers = {"Content-Type": "application/octet-stream"}
    answer = await alice.post("/api/send-file?name=x", content=endless(), headers=headers)
    assert "50 MiB" in await refused(answer, 413)


# ---- HTTP ----


async def test_what_isnt_there_and_what_it_cant_do_is_said(alice: httpx.AsyncClient) -> None:
    assert "kai-api(7)" in await refused(await alice.get("/api/nothing"), 404)
    for path in ("/api/jobs/abc", "/api/jobs/0", "/api/jobs/99999999999999999999", "/api/jobs/1%2f2"):
        await refused(await alice.get(path), 404)
    answer = await alice.put("/api/schedule", json={})
    assert "takes POST" in await refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert (await alice.head("/health")).status_code == 405
    assert (await alice.get("/health")).json()["user"] == "alice"
    plain = {"Content-Type": "text/plain"}
    assert "Content-Type" in await refused(await alice.post("/api/schedule", content=b"{}", headers=plain), 400)
    assert "isn't JSON" in await refused(await alice.post("/api/schedule", content=b"{"), 400)
    assert "256 KiB" in await refused(await alice.post("/api/schedule", content=b" " * (300 << 10)), 413)
    assert "twice" in await refused(await alice.get("/api/jobs?all=1&all=0"), 400)
    assert "all: expected" in await refused(await alice.get("/api/jobs?all=perhaps"), 400)


async def test_a_scheduler_that_is_away_is_503_and_comes_back(desk: Desk, alice: httpx.AsyncClient) -> None:
    sock = desk.stage.launcher.runtime / "scheduler.sock"
    sock.rename(sock.with_suffix(".away"))
    answer = await alice.get("/api/jobs")
    await refused(answer, 503)
    assert answer.headers["retry-after"] == "1"
    sock.with_suffix(".away").rename(sock)
    assert (await alice.get("/api/jobs")).json() == []


async def test_who_asks_too_often_waits_and_the_chat_is_not_flooded(stages: Stages) -> None:
    jobs = JobSet(await stages(settings={"api": {"requests": 60, "messages": 6}}))
    async with AsyncExitStack() as stack:
        alice = await Desk(jobs, stack).client()
        said = [await alice.post("/api/send-message", json={"text": f"number {n}"}) for n in range(5)]
        assert [answer.status_code for answer in said] == [200, 200, 429, 429, 429]
        assert 1 <= int(said[2].headers["retry-after"]) <= 10
        asked = [(await alice.get("/api/jobs")).status_code for _ in range(30)]
        assert 0 < asked.count(429) < 30
        assert (await alice.get("/health")).status_code == 200


async def test_the_operators_broken_configuration_is_told_and_nothing_hangs(stages: Stages) -> None:
    stage = await stages()
    etc = stage.launcher.directory / "etc"
    kept = (etc / "kai.yaml").read_text()
    (etc / "kai.yaml").write_text("agent: 5\n")
    async with AsyncExitStack() as stack:
        alice = await Desk(JobSet(stage), stack).client()
        assert "kai check" in await refused(await alice.get("/api/jobs"), 503)
    (etc / "kai.yaml").write_text(kept)


# ---- services ----


KEY = "key-that-nobody-may-see-0123"


@asynccontextmanager
async def service(told: list[str]) -> AsyncIterator[int]:
    """A service that answers with what it was asked, key and all; /bytes with something that is no text."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        told.append(head)
        size = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(size[1])) if size else b""
        answer = json.dumps({"head": head, "body": body.decode()}).encode()
        kind, answer = ("image/png", b"\x89PNG\xff") if " /bytes " in head else ("application/json", answer)
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_service_is_called_with_a_key_that_comes_back_nowhere(desk: Desk, alice: httpx.AsyncClient) -> None:
    told: list[str] = []
    async with service(told) as port:
        base = {"url": f"http://127.0.0.1:{port}", "allow_private": True}
        services = {
            "echo": {**base, "method": "POST", "auth": {"type": "bearer"}, "allow_path_suffix": True},
            "bytes": {**base, "url": f"{base['url']}/bytes"},
            "bobs": {**base, "users": ["bob"]},
            "often": {**base, "rate": 1},
        }
        directory = desk.stage.launcher.directory
        (directory / "etc/services.yaml").write_text(json.dumps({"services": services}))
        (directory / "credentials/service_echo").write_text(KEY)
        listed = (await alice.get("/api/services")).json()
        assert [each["name"] for each in listed] == ["bytes", "echo", "often"]
        asked = {"body": {"a": 1}, "params": {"q": "x", "n": 2, "deep": True}, "path_suffix": "deep/down"}
        answer = (await alice.post("/api/services/echo", json=asked)).json()
        assert answer["status"] == 200
        assert answer["body"]["head"].startswith("POST /deep/down?q=x&n=2&deep=true HTTP/1.1")
        assert json.loads(answer["body"]["body"]) == {"a": 1}
        assert f"Authorization: Bearer {KEY}" in told[0]
        assert KEY not in json.dumps(answer)
        found = (await alice.post("/api/services/bytes", json={})).json()
        assert found == {"status": 200, "body": "iVBOR/8=", "encoding": "base64", "content_type": "image/png"}
        assert "no such service" in await refused(await alice.post("/api/services/bobs", json={}), 404)
        assert "no such service" in await refused(await alice.post("/api/services/none", json={}), 404)
        wrong = {"path_suffix": "../../etc"}
        assert "path_suffix: " in await refused(await alice.post("/api/services/echo", json=wrong), 403)
        await alice.post("/api/services/often", json={})
        often = await alice.post("/api/services/often", json={})
        assert "too many calls" in await refused(often, 429)
        assert 1 <= int(often.headers["retry-after"]) <= 60
        assert "params" in await refused(await alice.post("/api/services/echo", json={"params": {"a": [1]}}), 400)
    for log in directory.joinpath("logs").iterdir():
        assert KEY not in log.read_text()
    await refused(await alice.post("/api/services/bytes", json={}), 502)
