"""GitHub's REST API, as far as deliveries of webhooks go. Blocking: one round is made in a thread.

Source: docs.github.com, "Repository webhooks" and "GitHub App webhooks" of REST API version 2022-11-28.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
import requests

VERSION = "2022-11-28"
CONNECT, READ = 10.0, 30.0
"""Seconds, to connect and for each piece of an answer."""
PAGE = 100
LARGEST_ANSWER = 16 << 20
T = TypeVar("T")


class GitHubError(Exception):
    """What failed at GitHub, where, and what to do."""


class Stop(GitHubError):
    """Nothing else would work either: no connection, a refused token, no requests left."""


class HookConfig(msgspec.Struct):
    url: str = ""


class Hook(msgspec.Struct):
    """A webhook of a repository."""

    id: int
    active: bool = True
    config: HookConfig = msgspec.field(default_factory=HookConfig)


class Attempt(msgspec.Struct):
    """One try to deliver. All tries of a delivery have its `guid`; `status_code` 0 means that there was no answer."""

    id: int
    guid: str
    delivered_at: str
    redelivery: bool = False
    status_code: int = 0
    status: str = ""
    event: str = ""


class Said(msgspec.Struct):
    message: str = "no reason"


class Answer(NamedTuple):
    """`following` is the address of the next page, "" on the last one."""

    status: int
    headers: Mapping[str, str]
    following: str
    content: bytes


class Api:
    """GitHub at `base`, with what `authorization` gives for the header, asked anew for each request."""

    def __init__(self, base: str, authorization: Callable[[], str]) -> None:
        self.base, self.authorization = base, authorization
        self.session = requests.Session()
        self.session.headers.update(
            {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": VERSION, "User-Agent": "kai-github"}
        )

    def hooks(self, repository: str) -> list[Hook]:
        """The webhooks of OWNER/NAME."""
        return list(self._pages(f"/repos/{quote(repository)}/hooks", Hook))

    def attempts(self, place: str) -> Iterator[Attempt]:
        """The newest first. `place` is /repos/OWNER/NAME/hooks/ID or /app/hook."""
        return self._pages(f"{place}/deliveries", Attempt)

    def redeliver(self, place: str, attempt: int) -> None:
        self._request("POST", f"{place}/deliveries/{attempt}/attempts")

    def close(self) -> None:
        self.session.close()

    def _pages(self, path: str, kind: type[T]) -> Iterator[T]:
        parameters: dict[str, str] = {"per_page": str(PAGE)}
        while True:
            answer = self._request("GET", path, parameters)
            try:
                yield from msgspec.json.decode(answer.content, type=list[kind])  # type: ignore[valid-type]
            except msgspec.DecodeError as error:
                raise GitHubError(f"{path}: GitHub's answer is not as expected: {error}") from None
            # The link is taken for its parameters alone: the token goes to no address that an answer names.
            following = parse_qs(urlsplit(answer.following).query)
            more = {name: values[0] for name, values in following.items() if name in ("cursor", "page")}
            if not more:
                return
            parameters = {"per_page": str(PAGE), **more}

    def _request(self, method: str, path: str, parameters: dict[str, str] | None = None) -> Answer:
        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = self.authorization()
            return request

        try:
            with self.session.request(
                method, self.base + path, params=parameters, timeout=(CONNECT, READ), allow_redirects=False,
                auth=sign, stream=True,
            ) as came:  # fmt: skip
                following = came.links.get("next", {}).get("url", "")
                answer = Answer(came.status_code, came.headers, following, _read(came))
        except requests.RequestException as error:
            raise Stop(f"{self.base} can't be reached: {type(error).__name__}: {_reason(error)}") from None
        if answer.status >= 300:
            raise _refusal(method, path, answer)
        return answer


def _read(came: requests.Response) -> bytes:
    """The body, within a bound. Raises RequestException."""
    parts, size = [], 0
    for part in came.iter_content(1 << 16):
        size += len(part)
        if size > LARGEST_ANSWER:
            raise requests.exceptions.ContentDecodingError(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _refusal(method: str, path: str, answer: Answer) -> GitHubError:
    status = answer.status
    left, after = answer.headers.get("x-ratelimit-remaining"), answer.headers.get("retry-after", "")
    if status in (403, 429) and (left == "0" or after or status == 429):
        until = answer.headers.get("x-ratelimit-reset", "")
        wait = int(until) - time.time() if until.isdigit() and left == "0" else int(after) if after.isdigit() else 60
        return Stop(f"GitHub asks to wait {max(wait, 60) / 60:.0f} min: its limit of requests is reached")
    if status == 401:
        return Stop("GitHub refuses the token (401): write a valid one to /etc/credstore/kai-github/token")
    if status == 403:
        return GitHubError(f"{path}: forbidden (403): the token needs the permission Webhooks: read and write")
    if status == 404:
        return GitHubError(f"{path}: not found (404): the token's account must administer the repository's webhooks")
    if status >= 500:
        return Stop(f"GitHub has a fault of its own ({status}) at {method} {path}")
    return GitHubError(f"{method} {path}: GitHub answers {status}: {_message(answer.content)}")


def _message(content: bytes) -> str:
    """GitHub's own words."""
    try:
        return msgspec.json.decode(content, type=Said).message[:200]
    except msgspec.DecodeError:
        return "no reason"


def _reason(error: Exception) -> str:
    """Without the address's parameters and headers."""
    return str(error.__cause__ or error).split("url:", 1)[0][:200]
