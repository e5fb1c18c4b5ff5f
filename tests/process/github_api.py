"""GitHub's API for webhooks and their deliveries, played: strict where GitHub is, and with a state.

    api = GitHubApi(); api.start()                   # a thread, on 127.0.0.1
    hook = api.hook("acme/site", "https://kai.example.org/webhook/github")
    api.deliver(hook, "push", {...}, answer=502)     # as GitHub tried it: an attempt with that status
    api.calls                                        # method, path and status of each request

A redelivery is a new attempt of the same guid, some moments later; where `lead` leads somewhere, it is really posted
there. The answers have the fields of GitHub's OpenAPI description (hook, hook-delivery-item), and no others.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from .hooks import Response, signed

TOKEN = "github_pat_11TESTTOKEN0123456789abcdefghij"
_ROUTES = (
    ("GET", re.compile(r"/repos/(?P<repo>[^/]+/[^/]+)/hooks"), "hooks"),
    ("GET", re.compile(r"/repos/(?P<repo>[^/]+/[^/]+)/hooks/(?P<hook>\d+)/deliveries"), "deliveries"),
    ("POST", re.compile(r"/repos/(?P<repo>[^/]+/[^/]+)/hooks/(?P<hook>\d+)/deliveries/(?P<id>\d+)/attempts"), "again"),
    ("GET", re.compile(r"/app/hook/deliveries"), "deliveries"),
    ("POST", re.compile(r"/app/hook/deliveries/(?P<id>\d+)/attempts"), "again"),
)
Lead = Callable[[dict[str, str], bytes], int]


class Seen(NamedTuple):
    method: str
    path: str
    status: int


class Refusal(Exception):
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class GitHubApi:
    """`forbidden` and `unknown` are repositories that the token has no right to, or doesn't see."""

    def __init__(self, *, secret: str = "the-secret-of-github-hooks") -> None:
        self.secret = secret
        self.hooks: dict[int, dict[str, Any]] = {}
        self.attempts: list[dict[str, Any]] = []
        self.payloads: dict[str, tuple[str, bytes, int]] = {}
        self.calls: list[Seen] = []
        self.forbidden: set[str] = set()
        self.app_key: Callable[[str], bool] | None = None
        self.lead: Lead | None = None
        self.trouble: tuple[int, dict[str, str]] | None = None
        self.stall = 0.0
        self.next_id = 12345678
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.serve(self)

            do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    # ---- what happened at GitHub ----

    def hook(self, repository: str, url: str, *, active: bool = True) -> int:
        self.next_id += 1
        place = f"{self.url}/repos/{repository}/hooks/{self.next_id}"
        self.hooks[self.next_id] = {
            "type": "Repository", "id": self.next_id, "name": "web", "active": active, "events": ["push"],
            "config": {"content_type": "json", "insecure_ssl": "0", "url": url, "secret": "********"},
            "updated_at": "2026-01-01T00:00:00Z", "created_at": "2026-01-01T00:00:00Z", "url": place,
            "test_url": f"{place}/test", "ping_url": f"{place}/pings", "deliveries_url": f"{place}/deliveries",
            "last_response": {"code": None, "status": "unused", "message": None}, "repository": repository,
        }  # fmt: skip
        return self.next_id

    def deliver(
        self, hook: int, event: str, payload: Any, *, answer: int, ago: timedelta = timedelta(hours=1), guid: str = ""
    ) -> str:
        """GitHub tried it so long ago and got this answer, 0 for none. `hook` 0 is the app's."""
        guid = guid or str(uuid.uuid4())
        self.payloads[guid] = (event, json.dumps(payload).encode(), hook)
        self._attempt(guid, answer, datetime.now(UTC) - ago, again=False)
        return guid

    def retried(self, guid: str, *, answer: int, ago: timedelta) -> None:
        """A redelivery of before."""
        self._attempt(guid, answer, datetime.now(UTC) - ago, again=True)

    def stamp(self, ago: timedelta) -> str:
        return (datetime.now(UTC) - ago).isoformat(timespec="milliseconds")[:23] + "Z"

    def asked(self) -> list[str]:
        """The guids of the redeliveries that were asked for, in order."""
        return [one["guid"] for one in self.attempts if one["redelivery"]]

    def _attempt(self, guid: str, answer: int, at: datetime, *, again: bool) -> None:
        event, _, hook = self.payloads[guid]
        with self.lock:
            self.next_id += 1
            status = {0: "timed out", 200: "OK", 202: "Accepted"}.get(answer, f"Invalid HTTP Response: {answer}")
            self.attempts.append({
                "id": self.next_id, "guid": guid, "delivered_at": at.isoformat(timespec="milliseconds")[:23] + "Z",
                "redelivery": again, "duration": 0.27, "status": status, "status_code": answer, "event": event,
                "action": None, "installation_id": None, "repository_id": 1296269, "throttled_at": None, "hook": hook,
            })  # fmt: skip

    # ---- requests ----

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        headers = {"Content-Type": "application/json; charset=utf-8", "X-RateLimit-Remaining": "4999"}
        try:
            status, answer = 200, self._answer(request, headers)
            if request.command == "POST":
                status = 202
        except Refusal as refusal:
            status, answer = (
                refusal.status,
                {"message": refusal.message, "documentation_url": "https://docs.github.com"},
            )
            headers |= refusal.headers
        body = json.dumps(answer).encode()
        self.calls.append(Seen(request.command, request.path, status))
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    def _answer(self, request: BaseHTTPRequestHandler, headers: dict[str, str]) -> Any:
        time.sleep(self.stall)
        address = urlsplit(request.path)
        self._check(request, address.path)
        for method, pattern, work in _ROUTES:
            if found := pattern.fullmatch(address.path):
                if method != request.command:
                    continue
                given = found.groupdict()
                if given.get("repo") in self.forbidden:
                    raise Refusal(403, "Resource not accessible by personal access token")
                if "repo" in given and given["repo"] not in {hook["repository"] for hook in self.hooks.values()}:
                    raise Refusal(404, "Not Found")
                return getattr(self, f"_{work}")(given, parse_qs(address.query), headers, address.path)
        raise Refusal(404, "Not Found")

    def _check(self, request: BaseHTTPRequestHandler, path: str) -> None:
        if self.trouble:
            raise Refusal(self.trouble[0], "trouble", **self.trouble[1])
        if not request.headers.get("User-Agent"):
            raise Refusal(403, "Request forbidden by administrative rules. Please make sure your request has a "
                          "User-Agent header")  # fmt: skip
        if request.headers.get("X-GitHub-Api-Version") not in (None, "2022-11-28"):
            raise Refusal(400, "The version is not supported")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        good = self.app_key(token) if path.startswith("/app/") and self.app_key else token == TOKEN
        if scheme not in ("Bearer", "token") or not good:
            raise Refusal(401, "Bad credentials")

    def _hooks(self, given: dict[str, str], query: Any, headers: dict[str, str], path: str) -> Any:
        hidden = {"repository"}
        mine = [hook for hook in self.hooks.values() if hook["repository"] == given["repo"]]
        size, page = _page_size(query), int(query.get("page", ["1"])[0])
        if page * size < len(mine):
            headers["Link"] = f'<{self.url}{path}?per_page={size}&page={page + 1}>; rel="next"'
        return [{key: value for key, value in hook.items() if key not in hidden}
                for hook in mine[(page - 1) * size : page * size]]  # fmt: skip

    def _deliveries(self, given: dict[str, str], query: Any, headers: dict[str, str], path: str) -> Any:
        hook = int(given.get("hook", "0"))
        size, cursor = _page_size(query), query.get("cursor", [""])[0]
        mine = sorted((one for one in self.attempts if one["hook"] == hook), key=lambda one: one["delivered_at"])[::-1]
        start = 0
        if cursor:
            places = [n for n, one in enumerate(mine) if f"v1_{one['id']}" == cursor]
            if not places:
                raise Refusal(422, "Invalid cursor")
            start = places[0]
        if start + size < len(mine):
            follow = f"v1_{mine[start + size]['id']}"
            headers["Link"] = f'<{self.url}{path}?per_page={size}&cursor={follow}>; rel="next"'
        return [{key: value for key, value in one.items() if key != "hook"} for one in mine[start : start + size]]

    def _again(self, given: dict[str, str], query: Any, headers: dict[str, str], path: str) -> Any:
        hook = int(given.get("hook", "0"))
        found = next((one for one in self.attempts if one["id"] == int(given["id"]) and one["hook"] == hook), None)
        if found is None:
            raise Refusal(404, "Not Found")
        event, body, _ = self.payloads[found["guid"]]
        answer = 0
        if self.lead:
            answer = self.lead(signed(event, body, delivery=found["guid"], secret=self.secret), body)
        self._attempt(found["guid"], answer, datetime.now(UTC), again=True)
        return {}


def _page_size(query: Any) -> int:
    size = int(query.get("per_page", ["30"])[0])
    if not 1 <= size <= 100:
        raise Refusal(422, "per_page is out of range")
    return size


def leads_to(post: Callable[[dict[str, str], bytes], Any], loop: asyncio.AbstractEventLoop) -> Lead:
    """Post from the stand-in's thread by a coroutine of the test's loop; its answer's status."""

    def lead(headers: dict[str, str], body: bytes) -> int:
        answer: Response = asyncio.run_coroutine_threadsafe(post(headers, body), loop).result(20)
        return answer.status

    return lead
