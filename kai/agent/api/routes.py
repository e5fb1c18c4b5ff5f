"""The routes of the API, who may use them, how often, and what each fault is in HTTP's terms."""

from __future__ import annotations

import logging
import math
import re
import socket
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import kai
from kai.agent.api import http
from kai.agent.api.fields import only_own
from kai.agent.api.http import Answer, Refused, Request
from kai.agent.api.jobs import Jobs
from kai.agent.api.limits import Bucket
from kai.agent.api.messages import Messages
from kai.agent.api.services import Services
from kai.agent.supervisor import Supervisor
from kai.interfaces import NoSuchJob, ServiceRefused, ServiceUnreachable, TooManyCalls, UnknownService
from kai.lib import log
from kai.lib.peers import INNER, OPERATOR, Peer
from kai.lib.varlink import Busy, Fault, InvalidParameter, Misconfigured, PermissionDenied, Unavailable

OPENAPI = Path(__file__).with_name("openapi.json")
SOON = {"Retry-After": "1"}
FREE = ("/health", "/openapi.json")
"""What may be asked as often as one likes: nobody else is asked for it."""
logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """A method and a path in which {…} stands for one step."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    message: bool = False


class Api:
    """The API of one user, for his inner agent. The instance is the identity: no request can name another."""

    def __init__(self, supervisor: Supervisor) -> None:
        setup, runtime = supervisor.setup, supervisor.daemon.runtime_dir
        self.setup = setup
        jobs = Jobs(runtime / "scheduler.sock", setup)
        messages = Messages(supervisor)
        services = Services(runtime / "proxy.sock", setup)
        limits = setup.config.kai.api
        self.requests, self.messages = Bucket(limits.requests), Bucket(limits.messages)
        self.routes = (
            Route("GET", "/health", self.health),
            Route("GET", "/openapi.json", self.openapi),
            Route("POST", "/api/schedule", jobs.add),
            Route("GET", "/api/jobs", jobs.list),
            Route("GET", "/api/jobs/{id}", jobs.get),
            Route("PATCH", "/api/jobs/{id}", jobs.change),
            Route("DELETE", "/api/jobs/{id}", jobs.remove),
            Route("POST", "/api/send-message", messages.text, message=True),
            Route("POST", "/api/send-file", messages.file, message=True),
            Route("GET", "/api/services", services.list),
            Route("POST", "/api/services/{name}", services.call),
        )

    async def handle(self, connection: socket.socket, peer: Peer) -> None:
        """One connection. Who isn't this user's agent or root gets no answer."""
        if OPERATOR not in peer.roles and (INNER not in peer.roles or peer.user != self.setup.user.name):
            logger.warning("refused a call of %s", peer)
            return
        await http.serve(connection, self.answer)

    async def answer(self, request: Request) -> Answer:
        """The answer to one request; a line in the log for each that isn't merely asked after."""
        began = time.monotonic()
        try:
            answer = Answer(msgspec.json.encode(await self._call(request)))
        except Refused as refused:
            answer = Answer(http.error(str(refused)), refused.status, refused.headers)
        except (Fault, Unavailable) as fault:
            answer = _refused(fault)
        except http.Gone:
            raise
        except Exception:
            logger.exception("%s failed", log.printable(f"{request.method} {request.path}", 150))
            answer = Answer(http.error("kai-agent failed to answer; its journal says why"), 500)
        if request.path not in FREE:
            spent = (time.monotonic() - began) * 1000
            what = log.printable(f"{request.method} {request.path}", 150)
            logger.info("api: %s -> %d, %.0f ms", what, answer.status, spent)
        return answer

    async def _call(self, request: Request) -> Any:
        route, steps = self._find(request)
        if request.path not in FREE:
            for bucket in (self.requests, self.messages) if route.message else (self.requests,):
                wait = bucket.take()
                if wait:
                    what = "messages and files" if bucket is self.messages else "requests"
                    text = f"too many {what}: at most {bucket.rate} a minute; go on in {math.ceil(wait)} s"
                    raise Refused(429, text, {"Retry-After": str(math.ceil(wait))})
        only_own(dict(request.query), self.setup.user)
        return await route.handler(request, *steps)

    def _find(self, request: Request) -> tuple[Route, list[Any]]:
        """The route of a request and the steps of its path that are the handler's."""
        methods = []
        for route in self.routes:
            match = _pattern(route.path).fullmatch(request.path)
            if match and route.method == request.method:
                return route, [_step(name, text) for name, text in match.groupdict().items()]
            if match:
                methods.append(route.method)
        if methods:
            allow = ", ".join(methods)
            raise Refused(405, f"{log.printable(request.path, 100)} takes {allow}", {"Allow": allow})
        raise Refused(404, f"there is no {log.printable(request.path, 100)}: kai-api(7) lists what there is")

    async def health(self, request: Request) -> Any:
        return {"status": "ok", "user": self.setup.user.name, "version": kai.__version__}

    async def openapi(self, request: Request) -> Any:
        return msgspec.Raw(OPENAPI.read_bytes())


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", re.escape(path).replace(r"\{", "{").replace(r"\}", "}")))


def _step(name: str, text: str) -> str | int:
    """A step of the path. Nothing that has a name here needs an escape."""
    if name == "id":
        if not re.fullmatch(r"[1-9][0-9]{0,17}", text, re.ASCII):
            raise Refused(404, f"there is no job {log.printable(text, 40)}")
        return int(text)
    return text


def _refused(fault: Fault | Unavailable) -> Answer:
    """A fault of the daemon that was asked, in HTTP's terms."""
    status, headers, text = 503, {}, str(fault)
    match fault:
        case InvalidParameter():
            status = 400
        case PermissionDenied() | ServiceRefused():
            status = 403
        case NoSuchJob():
            status, text = 404, "there is no such job: GET /api/jobs lists yours"
        case UnknownService():
            status, text = 404, "there is no such service: GET /api/services lists yours"
        case TooManyCalls():
            seconds = int(text) if text.isdigit() else 1
            status, headers = 429, {"Retry-After": str(seconds)}
            text = f"too many calls of this service; go on in {seconds} s"
        case ServiceUnreachable():
            status = 502
        case Busy() | Unavailable():
            headers = SOON
        case Misconfigured():
            text = f"{text} (the operator has to look: kai doctor)"
        case _:
            logger.warning("api: %s", fault)
    return Answer(http.error(text), status, headers)
