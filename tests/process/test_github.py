"""kai-github against a GitHub that is played: what failed is asked for again, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from kai.demo.launcher import python
from kai.demo.service import Unit
from kai.interfaces import Redeliver, Redelivered, Subscribe
from kai.lib.client import Client
from kai.lib.varlink import Busy, Misconfigured

from .conftest import ALICE, BOB, Stages
from .github_api import TOKEN, GitHubApi, leads_to
from .hooks import HookSet, push

PUBLIC = "https://kai.example.org"
ENDPOINT = f"{PUBLIC}/webhook/github"
USERS = [
    {"telegram_id": ALICE, "name": "alice", "role": "admin"},
    {"telegram_id": BOB, "name": "bob", "github_repos": ["acme/site"], "github_repos_allowed": ["acme/*"]},
]


@pytest.fixture
def github() -> Iterator[GitHubApi]:
    api = GitHubApi()
    api.start()
    yield api
    api.stop()


class GitHubSet(HookSet):
    """A stage with kai-webhook and kai-github."""

    def prepare(self, *, token: str = TOKEN, key: bytes = b"") -> GitHubSet:
        interpreter, _ = python()
        place = self.launcher.directory / "github-credentials"
        place.mkdir()
        if token:
            (place / "github_token").write_text(f"{token}\n")
        if key:
            (place / "github_app-key").write_bytes(key)
        self.launcher.add(
            Unit(
                "kai-github",
                (*interpreter, "-m", "kai.github.main", "--one-uid"),
                (("github", self.launcher.runtime / "github.sock"),),
                self.launcher._environment("github", CREDENTIALS_DIRECTORY=place) | {"NO_PROXY": "127.0.0.1"},
            )
        )
        self.github_socket = Client(self.launcher.runtime / "github.sock")
        return self

    async def redeliver(self) -> Redelivered:
        return await self.github_socket.call(Redeliver(), timeout=60)

    async def again(self) -> Redelivered:
        """Another round, not the result of the one before."""
        await self.launcher.services["kai-github"].stop()
        return await self.redeliver()

    @property
    def github_log(self) -> str:
        path = self.launcher.directory / "logs/kai-github.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
async def made(stages: Stages, github: GitHubApi) -> AsyncIterator[GitHubSet]:
    settings = {"webhook": {"url": PUBLIC}, "github": {"api_base": github.url}}
    hooks = GitHubSet(await stages(users=USERS, settings=settings)).prepare()
    github.lead = leads_to(
        lambda headers, body: hooks.request("POST", "/webhook/github", headers, body), asyncio.get_running_loop()
    )
    yield hooks
    for call in github.calls:
        assert TOKEN not in call.path
    assert TOKEN not in hooks.github_log


async def test_what_failed_is_delivered_again_and_only_that(made: GitHubSet, github: GitHubApi) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    github.deliver(hook, "push", push("it arrived"), answer=202)
    lost = github.deliver(hook, "push", push("it was lost"), answer=502)
    unheard = github.deliver(hook, "push", push("no answer"), answer=0)
    twice = github.deliver(hook, "push", push("second try"), answer=500, ago=timedelta(hours=2))
    github.deliver(hook, "push", push("second try"), answer=202, guid=twice)
    github.deliver(hook, "push", push("too old"), answer=502, ago=timedelta(days=3, minutes=1))
    assert await made.redeliver() == Redelivered(seen=4, asked=2)
    assert sorted(github.asked()) == sorted([lost, unheard])
    await made.delivered("it was lost", user=BOB)
    await made.delivered("no answer", user=BOB)
    assert made.count("it arrived", user=BOB) == made.count("too old", user=BOB) == 0
    assert await made.again() == Redelivered(seen=4, asked=0)


async def test_a_delivery_that_came_after_all_is_told_once(made: GitHubSet, github: GitHubApi) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    guid = github.deliver(hook, "push", push("only once"), answer=0)  # it came; the answer was lost
    assert (await made.github("push", push("only once"), delivery=guid)).status == 202
    await made.delivered("only once", user=BOB)
    assert (await made.redeliver()).asked == 1
    await asyncio.sleep(0.5)
    assert made.count("only once", user=BOB) == 1


async def test_what_is_refused_again_and_again_is_left_after_five_tries(made: GitHubSet, github: GitHubApi) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    guid = github.deliver(hook, "push", push("x"), answer=401, ago=timedelta(hours=30))
    for hours in (29, 27, 23):
        github.retried(guid, answer=401, ago=timedelta(hours=hours))
    assert (await made.redeliver()).asked == 1
    github.retried(guid, answer=401, ago=timedelta(hours=9))
    assert (await made.again()).asked == 0


async def test_a_long_outage_is_outlived_with_growing_pauses(made: GitHubSet, github: GitHubApi) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    guid = github.deliver(hook, "push", push("at last"), answer=502, ago=timedelta(hours=40))
    for hours in (39, 38, 36, 32, 28, 24, 20, 16, 12, 8, 3):
        github.retried(guid, answer=502, ago=timedelta(hours=hours))
    assert (await made.redeliver()).asked == 0, "the last try was three hours ago"
    for one in github.attempts[-1:]:
        one["delivered_at"] = github.stamp(timedelta(hours=5))
    assert (await made.again()).asked == 1
    await made.delivered("at last", user=BOB)


async def test_what_is_older_than_three_days_is_not_begun_again_by_its_later_tries(
    made: GitHubSet, github: GitHubApi
) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    guid = github.deliver(hook, "push", push("old"), answer=502, ago=timedelta(days=3, hours=2))
    github.retried(guid, answer=502, ago=timedelta(days=2))
    assert (await made.redeliver()).asked == 0


async def test_a_try_of_this_minute_is_left_alone(made: GitHubSet, github: GitHubApi) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    github.deliver(hook, "push", push("just now"), answer=502, ago=timedelta(seconds=20))
    assert (await made.redeliver()).asked == 0


async def test_all_pages_are_read(made: GitHubSet, github: GitHubApi) -> None:
    hook = github.hook("acme/site", ENDPOINT)
    github.lead = None
    for number in range(250):
        github.deliver(
            hook, "push", push("x"), answer=502 if number in (0, 249) else 200, ago=timedelta(minutes=5 + number)
        )
    assert await made.redeliver() == Redelivered(seen=250, asked=2)
    assert sum("deliveries?" in call.path for call in github.calls) == 3


async def test_hooks_that_lead_elsewhere_or_are_off_are_left_alone(made: GitHubSet, github: GitHubApi) -> None:
    for url, active in (
        ("https://other.example.org/webhook/github", True), (f"{PUBLIC}/elsewhere", True), (ENDPOINT, False),
    ):  # fmt: skip
        github.deliver(github.hook("acme/site", url, active=active), "push", push("x"), answer=502)
    github.deliver(github.hook("acme/site", "https://KAI.example.org/webhook/github/"), "push", push("x"), answer=502)
    assert (await made.redeliver()).asked == 1


async def test_repositories_that_users_added_are_looked_at_too(made: GitHubSet, github: GitHubApi) -> None:
    github.hook("acme/site", ENDPOINT)
    github.deliver(github.hook("acme/api", ENDPOINT), "push", push("his own"), answer=502)
    await made.call(Subscribe(user="bob", add="acme/api"))
    assert (await made.redeliver()).asked == 1


async def test_one_repositorys_trouble_is_no_others(made: GitHubSet, github: GitHubApi) -> None:
    github.hook("acme/a", ENDPOINT)
    github.forbidden.add("acme/a")
    github.deliver(github.hook("acme/site", ENDPOINT), "push", push("well"), answer=502)
    for name in ("acme/a", "acme/missing"):
        await made.call(Subscribe(user="bob", add=name))
    assert (await made.redeliver()).asked == 1
    assert "Webhooks: read and write" in made.github_log
    assert "acme/missing/hooks: not found (404)" in made.github_log


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (401, {}, "refuses the token"),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9999999999"}, "asks to wait"),
        (429, {"Retry-After": "120"}, "asks to wait 2 min"),
        (500, {}, "a fault of its own"),
        (301, {"Location": "https://evil.example/"}, "answers 301"),
    ],
)
async def test_trouble_at_github_is_told_and_the_next_round_goes_on(
    made: GitHubSet, github: GitHubApi, status: int, headers: dict[str, str], says: str
) -> None:
    github.deliver(github.hook("acme/site", ENDPOINT), "push", push("later"), answer=502)
    github.trouble = status, headers
    if status == 301:
        assert (await made.redeliver()).asked == 0
    else:
        with pytest.raises(Busy, match=says):
            await made.redeliver()
    assert says in made.github_log
    assert len(github.calls) == 1, "nothing else would work either"
    github.trouble = None
    assert (await made.again()).asked == 1


async def test_a_github_that_cant_be_reached_is_told(made: GitHubSet, github: GitHubApi) -> None:
    github.hook("acme/site", ENDPOINT)
    github.server.socket.close()
    with pytest.raises(Busy, match="can't be reached"):
        await made.redeliver()


async def test_who_asks_during_a_round_joins_it(made: GitHubSet, github: GitHubApi) -> None:
    github.deliver(github.hook("acme/site", ENDPOINT), "push", push("x"), answer=502)
    github.stall = 0.5
    answers = await asyncio.gather(*(made.redeliver() for _ in range(5)))
    assert {answer.asked for answer in answers} == {1}
    assert len(github.calls) == 3
    assert (await made.redeliver()).asked == 1, "it was a moment ago"
    assert len(github.calls) == 3


async def test_without_a_token_nothing_is_asked_of_anybody(stages: Stages, github: GitHubApi) -> None:
    hooks = GitHubSet(await stages(users=USERS, settings={"github": {"api_base": github.url}})).prepare(token="")
    assert await hooks.redeliver() == Redelivered(seen=0, asked=0)
    assert hooks.launcher.services["kai-webhook"].starts == 0
    assert await hooks.launcher.wait_exit("kai-github") == 0
    assert github.calls == []


async def test_an_app_signs_for_itself(stages: Stages, github: GitHubApi, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    for command in (["genrsa", "-out", os.fspath(key), "2048"],
                    ["rsa", "-in", os.fspath(key), "-pubout", "-out", os.fspath(public)]):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True)

    def good(token: str) -> bool:
        head, claims, signature = token.split(".")
        decoded = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in (head, claims, signature)]
        (tmp_path / "signature").write_bytes(decoded[2])
        verify = ["openssl", "dgst", "-sha256", "-verify", os.fspath(public), "-signature", str(tmp_path / "signature")]
        signed = subprocess.run(verify, input=f"{head}.{claims}".encode(), check=False, capture_output=True)
        stated = json.loads(decoded[1])
        return signed.returncode == 0 and stated["iss"] == "4711" and 0 < stated["exp"] - stated["iat"] <= 600

    github.app_key = good
    settings = {"github": {"api_base": github.url, "app_id": 4711}}
    hooks = GitHubSet(await stages(users=USERS, settings=settings)).prepare(token="", key=key.read_bytes())
    guid = github.deliver(0, "push", push("of the app"), answer=502)
    assert await hooks.redeliver() == Redelivered(seen=1, asked=1)
    assert github.asked() == [guid]


async def test_an_apps_key_without_its_number_is_told(stages: Stages, github: GitHubApi) -> None:
    hooks = GitHubSet(await stages(users=USERS)).prepare(token="", key=b"not used")
    with pytest.raises(Misconfigured, match=r"github\.app_id"):
        await hooks.redeliver()
