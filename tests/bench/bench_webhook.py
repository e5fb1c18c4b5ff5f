"""Webhooks accepted and stored in a second, beside Debian's `webhook`; the first request; 10,000 with the bot away.

`python tests/bench/bench_webhook.py [SECONDS]`; JSON lines. The clients are a process of their own with eight
connections, each of which sends its next request when it has the answer. Kai answers when the body is on disk;
`webhook` (package webhook, adnanh/webhook; left out where it isn't installed, KAI_BENCH_WEBHOOK names another place)
answers when it has started /bin/true, and stores nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.botapi.server import BotApi
from kai.demo.launcher import Launcher
from tests.process.conftest import ALICE, TOKEN, Stage
from tests.process.hooks import SECRET, HookSet, push

CLIENTS, SIZE, STARTS, MANY = 8, 10_000, 15, 10_000


def say(figure: str, **values: object) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


# ---- the clients' process ----


class Client(asyncio.Protocol):
    """One connection that posts without a pause."""

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number, self.count, self.got = load, number, 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.send()

    def send(self) -> None:
        self.count += 1
        self.began = time.perf_counter()
        delivery = f"Delivery-{os.getpid()}-{self.number}-{self.count}"
        self.transport.write(self.load.request.replace(b"DELIVERY", delivery.encode()))

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
        if not found or len(body) < length:
            return
        now = time.perf_counter()
        self.load.taken.append(now - self.began)
        self.load.statuses.add(int(head[9:12]))
        self.got = b""
        if now < self.load.end and (not self.load.most or len(self.load.taken) < self.load.most):
            self.send()
        else:
            self.transport.close()
            self.load.open -= 1
            if not self.load.open:
                self.load.over.set()


class Load:
    def __init__(self, request: bytes, seconds: float, most: int) -> None:
        self.request, self.most = request, most
        self.end = time.perf_counter() + seconds
        self.taken: list[float] = []
        self.statuses: set[int] = set()
        self.open, self.over = CLIENTS, asyncio.Event()

    async def run(self, address: str) -> dict[str, Any]:
        loop, began = asyncio.get_running_loop(), time.perf_counter()
        for number in range(CLIENTS):

            def made(number: int = number) -> Client:
                return Client(self, number)

            if address.startswith("/"):
                await loop.create_unix_connection(made, address)
            else:
                host, _, port = address.partition(":")
                await loop.create_connection(made, host, int(port))
        await self.over.wait()
        spent, taken = time.perf_counter() - began, sorted(self.taken)
        return {
            "per_second": round(len(taken) / spent), "requests": len(taken), "statuses": sorted(self.statuses),
            **{f"p{part}_ms": round(1000 * taken[len(taken) * part // 100], 2) for part in (50, 95, 99)},
            "max_ms": round(1000 * taken[-1], 2),
        }  # fmt: skip


def clients(address: str, path: str, seconds: float, most: int) -> None:
    """The program of the clients."""
    text = json.dumps(push("x"))
    body = json.dumps({**push("y"), "padding": "x" * (SIZE - len(text) - 20)}).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n"
        f"X-GitHub-Delivery: DELIVERY\r\nX-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    print(json.dumps(asyncio.run(Load(head.encode() + body, seconds, most).run(address))))


async def posted(address: str, path: str, seconds: float, most: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "--clients", address, path, str(seconds), str(most)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    found: dict[str, Any] = json.loads(said)
    return found


# ---- the other one ----


async def others(directory: Path, seconds: float) -> None:
    program = os.environ.get("KAI_BENCH_WEBHOOK") or shutil.which("webhook")
    if not program:
        say("Debian's webhook", left_out="not installed")
        return
    rule = {"match": {
        "type": "payload-hmac-sha256", "secret": SECRET,
        "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
    }}  # fmt: skip
    hooks = directory / "hooks.json"
    hooks.write_text(json.dumps([{"id": "x", "execute-command": "/bin/true", "trigger-rule": rule}]))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        program, "-hooks", os.fspath(hooks), "-ip", "127.0.0.1", "-port", str(port), stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            await asyncio.sleep(0.05)
            if socket.socket().connect_ex(("127.0.0.1", port)) == 0:
                break
        say(
            "Debian's webhook, 8 clients, 10 kB, nothing stored",
            **await posted(f"127.0.0.1:{port}", "/hooks/x", seconds),
        )
    finally:
        process.terminate()
        await process.wait()


# ---- Kai ----


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="kai-bench-", dir=Path.cwd()) as name:
        async with AsyncExitStack() as stack:
            api = BotApi(token=TOKEN)
            await api.start()
            stack.push_async_callback(api.stop)
            api.declare_user(ALICE)
            users = [{"telegram_id": ALICE, "name": "alice", "role": "admin"}]
            launcher = Launcher(Path(name), api_base=api.url, token=TOKEN, users=users)
            await launcher.start()
            stack.push_async_callback(launcher.stop)
            await launcher.wait_ready("kai-bot")
            hooks = HookSet(Stage(api, launcher))
            await hooks.bot_leaves()
            await hooks.read()
            address = os.fspath(hooks.socket)
            for _ in range(3):
                say("kai-webhook, 8 clients, 10 kB, stored", **await posted(address, "/webhook/github", seconds))
                await others(Path(name), seconds)
                await emptied(hooks)
            taken = []
            for _ in range(STARTS):
                await hooks.launcher.services["kai-webhook"].stop()
                await asyncio.sleep(0.2)
                began = time.perf_counter()
                assert (await hooks.github("push", push("cold"))).status == 202
                taken.append(1000 * (time.perf_counter() - began))
            say(
                "the first request, which starts it",
                median_ms=round(statistics.median(taken)),
                max_ms=round(max(taken)),
            )
            await emptied(hooks)
            stored = await posted(address, "/webhook/github", 600, MANY)
            waiting = (await hooks.read()).stored
            began = time.perf_counter()
            hooks.bot_returns()
            while hooks.spooled():
                await asyncio.sleep(0.2)
            spent = time.perf_counter() - began
            await hooks.launcher.services["kai-bot"].stop()
            say("deliveries with the bot stopped, then started", accepted=stored["requests"], waiting=waiting,
                handed_over=rows(launcher), twice=rows(launcher) - distinct(launcher),
                seconds=round(spent, 1), per_second=round(waiting / spent))  # fmt: skip


async def emptied(hooks: HookSet) -> None:
    """What a figure left isn't the next one's."""
    await hooks.launcher.services["kai-webhook"].stop()
    for path in (hooks.state / "spool").iterdir():
        path.unlink()
    await hooks.read()


def query(launcher: Launcher, what: str) -> int:
    program = f"import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute({what!r}).fetchone()[0])"
    path = os.fspath(launcher.directory / "state/bot/queue.db")
    return int(subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True).stdout)


def rows(launcher: Launcher) -> int:
    return query(launcher, "SELECT count(*) FROM outbox WHERE caller = 'kai-webhook'")


def distinct(launcher: Launcher) -> int:
    return query(launcher, "SELECT count(DISTINCT key) FROM outbox WHERE caller = 'kai-webhook'")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clients"]:
        clients(sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
    else:
        asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0))
