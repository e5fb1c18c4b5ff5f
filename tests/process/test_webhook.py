"""kai-webhook from outside: what it takes, what it refuses and why, and that everything it took reaches its people."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from kai.interfaces import (
    ListRepositories,
    ListSubscriptions,
    RetryDeliveries,
    Subscribe,
)
from kai.lib.varlink import InvalidParameter, Misconfigured

from .conftest import ALICE, BOB, STRANGER, Stages
from .hook_points import ACCEPTING, POINTS
from .hooks import BEARER, OLD, SECRET, HookSet, push, request, response, signature, signed

GROUP = -1005
USERS = [
    {"telegram_id": ALICE, "name": "alice", "role": "admin", "github": "Alice-Hub"},
    {
        "telegram_id": BOB, "name": "bob", "github": "bob-hub", "github_repos": ["acme/site"],
        "github_repos_allowed": ["acme/*"], "notify_chats": [GROUP],
    },
]  # fmt: skip
DELIVERY = "72d3162e-cc78-11e3-81ab-4c9367dc0958"


@pytest.fixture
async def hooks(stages: Stages) -> HookSet:
    settings = {"webhook": {"url": "https://kai.example.org"}}
    return HookSet(await stages(users=USERS, settings=settings))


# ---- what is taken ----


async def test_an_event_that_is_signed_is_stored_and_told(hooks: HookSet) -> None:
    answer = await hooks.github("push", push("mend the door"))
    assert (answer.status, answer.text) == (202, "accepted\n")
    assert "mend the door" in await hooks.delivered("mend the door", user=BOB)
    await hooks.empty()
    assert hooks.count("mend the door", user=ALICE) == 0, "who isn't concerned hears nothing"


async def test_a_delivery_that_comes_again_is_told_once_also_after_a_restart(hooks: HookSet) -> None:
    for expected in (202, 200):
        assert (await hooks.github("push", push("only once"), delivery=DELIVERY)).status == expected
    await hooks.delivered("only once", user=BOB)
    await hooks.empty()
    await hooks.launcher.services["kai-webhook"].stop()
    assert (await hooks.github("push", push("only once"), delivery=DELIVERY)).status == 200
    await hooks.delivered("another") if await said(hooks, "another") else None
    assert hooks.count("only once", user=BOB) == 1


async def said(hooks: HookSet, text: str) -> bool:
    return (await hooks.generic({"message": text})).status == 202


async def test_the_same_delivery_ten_times_at_once_is_stored_once(hooks: HookSet) -> None:
    answers = await asyncio.gather(*(hooks.github("push", push("at once"), delivery=DELIVERY) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [200] * 9 + [202]
    await hooks.delivered("at once", user=BOB)
    await hooks.empty()
    assert hooks.count("at once", user=BOB) == 1


async def test_two_secrets_are_taken_while_one_replaces_the_other(stages: Stages) -> None:
    hooks = HookSet(await stages(users=USERS), github=SECRET, github_old=OLD)
    assert (await hooks.github("push", push("new"), secret=SECRET)).status == 202
    assert (await hooks.github("push", push("old"), secret=OLD)).status == 202
    assert (await hooks.github("push", push("third"), secret="another-secret-of-someone")).status == 401
    assert (await hooks.read()).rotating


async def test_githubs_ping_is_answered_and_told(hooks: HookSet) -> None:
    ping = {"zen": "Keep it logically awesome.", "hook_id": 1, "repository": {"full_name": "acme/site"}}
    assert (await hooks.github("ping", ping)).status == 202
    assert "acme/site" in await hooks.delivered("reaches Kai", user=BOB)


async def test_what_nobody_owns_goes_to_the_admins(hooks: HookSet) -> None:
    await hooks.github("push", push("for admins", repository="other/thing"))
    await hooks.delivered("for admins", user=ALICE)
    assert hooks.count("for admins", user=BOB) == 0


async def test_a_login_hears_of_its_own_events_however_it_is_written(hooks: HookSet) -> None:
    await hooks.github("push", push("hers", sender="ALICE-hub", repository="other/thing"))
    await hooks.github("push", push("his", sender="Bob-Hub", repository="other/thing"))
    await hooks.delivered("hers", user=ALICE)
    await hooks.delivered("his", user=BOB)
    assert (hooks.count("hers", user=BOB), hooks.count("his", user=ALICE)) == (0, 0)


async def test_a_generic_message_reaches_the_admins_as_text(hooks: HookSet) -> None:
    assert (await hooks.generic({"message": "disk <b>full</b> *now*"})).status == 202
    assert await hooks.delivered("disk") == "disk <b>full</b> *now*"
    assert (await hooks.generic({"a": [1, {"b": "ü"}]}, Authorization="", X_Webhook_Secret=BEARER)).status == 202
    assert await hooks.delivered('"b"') == json.dumps({"a": [1, {"b": "ü"}]}, indent=2, ensure_ascii=False)
    assert hooks.count("disk", user=BOB) == 0


async def test_a_notice_shows_what_was_written_and_makes_nothing_of_it(hooks: HookSet) -> None:
    title = "<b>x</b> <a href='https://evil.example'>y</a> \u202eeman *z* \u200b/new @root"
    payload = {
        "action": "opened",
        "issue": {
            "number": 7, "title": title, "html_url": "https://github.com/acme/site/issues/7", "body": "/new " * 99,
                  },
        "repository": {"full_name": "acme/site"}, "sender": {"login": "octo"},
    }  # fmt: skip
    await hooks.github("issues", payload)
    message = await hooks.stage.answer("opened issue", user=BOB)
    text = message.text or ""
    assert "<b>x</b> <a href='https://evil.example'>y</a> eman *z* /new @root" in text
    assert "\u202e" not in text and "\u200b" not in text
    links = [one for one in message.entities if one["type"] == "text_link"]
    assert [one["url"] for one in links] == ["https://github.com/acme/site/issues/7"]
    assert not [one for one in message.entities if one["type"] in ("bot_command", "mention")]
    assert len(text) < 1500


async def test_ten_deliveries_while_the_bot_is_away_arrive_once_when_it_is_back(hooks: HookSet) -> None:
    await hooks.bot_leaves()
    for number in range(10):
        assert (await hooks.github("push", push(f"number-{number}-"))).status == 202
    assert len(hooks.spooled()) == 10
    await hooks.launcher.services["kai-webhook"].stop()
    assert len(hooks.spooled()) == 10
    hooks.bot_returns()
    assert (await hooks.read()).stored <= 10
    await hooks.empty()
    await hooks.delivered("number-9-", user=BOB)
    shown = [text for text in hooks.stage.shown(BOB) if "number-" in text]
    assert [f"number-{number}-" in text for number, text in enumerate(shown)] == [True] * 10, (
        "once each, in their order"
    )


# ---- what is refused ----


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"X-Hub-Signature-256": ""}, 401, "X-Hub-Signature-256"),
        ({"X-Hub-Signature-256": "sha256=" + "0" * 64}, 401, "wrong"),
        ({"X-Hub-Signature-256": "sha1=" + "0" * 40}, 401, "X-Hub-Signature-256"),
        ({"X-Hub-Signature-256": "sha256=" + "é" * 64}, 401, "X-Hub-Signature-256"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ({"Content-Type": "text/plain"}, 415, "application/json"),
        ({"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
        ({"X-GitHub-Event": ""}, 400, "X-GitHub-Event"),
        ({"X-GitHub-Event": "../../x"}, 400, "X-GitHub-Event"),
        ({"X-GitHub-Delivery": ""}, 400, "X-GitHub-Delivery"),
        ({"X-GitHub-Delivery": "../../etc/passwd"}, 400, "X-GitHub-Delivery"),
        ({"X-GitHub-Delivery": "a" * 65}, 400, "X-GitHub-Delivery"),
    ],
)
async def test_what_isnt_right_is_refused_with_a_reason_and_nothing_is_stored(
    hooks: HookSet, headers: dict[str, str], status: int, says: str
) -> None:
    body = json.dumps(push("never")).encode()
    answer = await hooks.request("POST", "/webhook/github", signed("push", body) | headers, body)
    assert answer.status == status
    assert says in answer.text
    state = await hooks.read()
    assert (state.stored, state.failed, state.last, hooks.spooled(), hooks.failed()) == (0, 0, "", [], [])


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic " + BEARER},
                                     {"X-Webhook-Secret": SECRET}, {"Authorization": f"Bearer {SECRET}"}])  # fmt: skip
async def test_a_generic_request_without_its_own_secret_is_refused(hooks: HookSet, headers: dict[str, str]) -> None:
    answer = await hooks.request("POST", "/webhook", {"Content-Type": "application/json", **headers}, b"{}")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert hooks.spooled() == []


async def test_an_endpoint_without_a_secret_is_closed(stages: Stages) -> None:
    hooks = HookSet(await stages(users=USERS), other="not used by anything")
    assert (await hooks.github("push", push("x"))).status == 404
    assert (await hooks.generic({"message": "x"})).status == 404
    assert (await hooks.request("POST", "/webhook/telegram", {}, b"{}")).status == 404
    state = await hooks.read()
    assert (state.github, state.generic) == (False, False)
    assert "webhook/other" in state.trouble


async def test_a_secret_that_could_be_guessed_closes_its_endpoint_and_says_why(stages: Stages) -> None:
    hooks = HookSet(await stages(users=USERS), github="short", generic=BEARER)
    assert (await hooks.github("push", push("x"), secret="short")).status == 404
    assert (await hooks.generic({"message": "x"})).status == 202
    assert "shorter than 16" in (await hooks.read()).trouble
    assert "short" not in hooks.log.replace("shorter", "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/health", 200), ("HEAD", "/health", 200), ("POST", "/health", 405),
        ("GET", "/webhook/github", 405), ("PUT", "/webhook", 405), ("POST", "/webhook/", 404),
        ("POST", "/webhook/github/../github", 404), ("GET", "/etc/passwd", 404), ("OPTIONS", "*", 404),
    ],
)  # fmt: skip
async def test_other_paths_and_methods_are_told_apart(hooks: HookSet, method: str, path: str, status: int) -> None:
    given = {"Content-Length": "0"} if method in ("POST", "PUT") else {}
    answer = await hooks.request(method, path, given)
    assert answer.status == status
    if status == 405:
        assert answer.headers["allow"] in ("POST", "GET, HEAD")


async def test_health_says_nothing_that_an_outsider_could_use(hooks: HookSet) -> None:
    answer = await hooks.request("GET", "/health")
    assert answer.text == "ok\n"
    assert set(answer.headers) <= {"content-type", "content-length", "connection"}


async def test_a_body_of_25_mib_is_taken_and_one_more_byte_is_not(hooks: HookSet) -> None:
    head, tail = b'{"message": "all of it is here", "rest": "', b'"}'
    body = head + b"x" * ((25 << 20) - len(head) - len(tail)) + tail
    assert (await hooks.generic(body)).status == 202
    assert "all of it" in await hooks.delivered("all of it is here")
    assert (await hooks.generic(body + b" ")).status == 413
    given = {"Authorization": f"Bearer {BEARER}", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    assert (await hooks.request("POST", "/webhook", given, chunk * 26 + b"0\r\n\r\n")).status == 413
    await hooks.empty()


async def test_a_chunked_body_is_taken(hooks: HookSet) -> None:
    body = json.dumps(push("in pieces")).encode()
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:])) + b"0\r\n\r\n"
    given = signed("push", body) | {"Transfer-Encoding": "chunked"}
    assert (await hooks.request("POST", "/webhook/github", given, pieces)).status == 202
    await hooks.delivered("in pieces", user=BOB)


async def test_a_body_without_a_length_is_refused(hooks: HookSet) -> None:
    assert (await hooks.request("POST", "/webhook/github", signed("push", b""))).status == 411


async def test_signed_rubbish_is_kept_aside_and_the_admins_are_told(hooks: HookSet) -> None:
    assert (await hooks.github("push", b"this is no JSON", delivery=DELIVERY)).status == 202
    assert DELIVERY in await hooks.delivered("could not be delivered")
    await hooks.empty()
    assert [name[21:] for name in hooks.failed()] == [DELIVERY]
    assert (await hooks.read()).failed == 1
    assert (await hooks.call(RetryDeliveries())).failed in (0, 1)
    await asyncio.sleep(0.3)
    assert [name[21:] for name in hooks.failed()] == [DELIVERY]
    assert hooks.count("could not be delivered") == 1


async def test_eight_bodies_come_in_at_once_and_who_waits_too_long_is_told_to_come_again(hooks: HookSet) -> None:
    body = json.dumps(push("slow")).encode()
    head = "POST /webhook/github HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in (signed("push", body) | {"Content-Length": str(len(body))}).items()
    )
    slow = [await asyncio.open_unix_connection(hooks.socket) for _ in range(8)]
    for _, writer in slow:
        writer.write(head.encode() + b"\r\n" + body[:5])
        await writer.drain()
    await asyncio.sleep(0.3)
    ninth = await hooks.github("push", push("ninth"))
    assert (ninth.status, ninth.headers["retry-after"]) == (503, "10")
    assert (await hooks.request("GET", "/health")).status == 200, "what has no body needs no place"
    for reader, writer in slow[:1]:
        writer.write(body[5:])
        assert (await response(reader)).status == 202
    assert (await hooks.github("push", push("tenth"))).status == 202
    for reader, writer in slow[1:]:
        assert (await response(reader)).status == 408
        writer.close()
    slow[0][1].close()
    assert (await hooks.github("push", push("eleventh"))).status == 202


async def test_a_head_that_doesnt_come_and_one_that_doesnt_end_cost_a_connection_for_a_while(hooks: HookSet) -> None:
    reader, writer = await asyncio.open_unix_connection(hooks.socket)
    writer.write(b"POST /webhook HTTP/1.1\r\nX-A: ")
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    reader, writer = await asyncio.open_unix_connection(hooks.socket)
    writer.write(b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 20000 + b"\r\n\r\n")
    assert b"200" not in await asyncio.wait_for(reader.read(), 30)
    writer.close()


async def test_many_connections_leave_room_for_others_when_they_end(hooks: HookSet) -> None:
    many = [await asyncio.open_unix_connection(hooks.socket) for _ in range(128)]
    await hooks.read()
    assert (await hooks.request("GET", "/health")).status == 0
    for _, writer in many:
        writer.close()
    async with asyncio.timeout(10):
        while (await hooks.request("GET", "/health")).status != 200:
            await asyncio.sleep(0.05)


async def test_what_a_local_program_does_to_loopback_takes_nothing_from_the_proxy(hooks: HookSet) -> None:
    loopback = hooks.launcher.runtime / "http.sock"
    many = [await asyncio.open_unix_connection(loopback) for _ in range(128)]
    body = json.dumps(push("slow")).encode()
    given = signed("push", body) | {"Content-Length": str(len(body))}
    for _, writer in many[:8]:
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"POST /webhook/github HTTP/1.1\r\n{head}\r\n".encode() + body[:5])
        await writer.drain()
    await hooks.read()
    assert (await request(loopback, "GET", "/health")).status == 0
    assert (await hooks.github("push", push("through the proxy"))).status == 202
    await hooks.delivered("through the proxy", user=BOB)
    for _, writer in many:
        writer.close()


async def test_one_connection_takes_many_deliveries(hooks: HookSet) -> None:
    reader, writer = await asyncio.open_unix_connection(hooks.socket)
    for number in range(5):
        body = json.dumps(push(f"kept-{number}-")).encode()
        given = signed("push", body) | {"Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"POST /webhook/github HTTP/1.1\r\n{head}\r\n".encode() + body)
        assert (await response(reader)).status == 202
    writer.close()
    await hooks.delivered("kept-4-", user=BOB)


async def test_a_wrong_signature_is_in_the_journal_with_the_clients_address(hooks: HookSet) -> None:
    body = b"{}"
    wrong = signed("push", body) | {"X-Hub-Signature-256": signature(b"other"), "X-Forwarded-For": "1.1.1.1, 192.0.2.7"}
    await hooks.request("POST", "/webhook/github", wrong, body)
    assert "192.0.2.7: delivery" in hooks.log and "1.1.1.1" not in hooks.log
    assert SECRET not in hooks.log and BEARER not in hooks.log


async def test_a_full_disk_refuses_and_loses_nothing(hooks: HookSet) -> None:
    await hooks.bot_leaves()
    await hooks.github("push", push("before"))
    [name] = hooks.spooled()
    await hooks.launcher.services["kai-webhook"].stop()
    os.truncate(hooks.state / "spool" / name, 1 << 30)  # sparse: what waits counts as a GiB
    answer = await hooks.github("push", push("after"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")
    assert "1024 MiB wait" in (await hooks.read()).trouble
    assert (await hooks.request("GET", "/health")).status == 503
    assert hooks.spooled() == [name]


# ---- kills ----


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_step_loses_nothing_that_was_accepted_and_tells_it_once(
    stages: Stages, tmp_path: Path, point: str
) -> None:
    hooks = HookSet(await stages(users=USERS), point=point)
    await hooks.read()
    (tmp_path / "set/kill").touch()
    delivery = str(uuid.uuid4())
    answers = []
    for _ in range(40):  # as GitHub would, with redeliveries
        try:
            answers.append((await hooks.github("push", push("through it all"), delivery=delivery)).status)
        except ConnectionError:
            answers.append(0)
        if answers[-1] in (200, 202):
            break
        await asyncio.sleep(0.2)
    assert answers[-1] in (200, 202)
    await hooks.delivered("through it all", user=BOB)
    await hooks.empty(within=40)
    assert not (tmp_path / "set/kill").exists(), "it was killed"
    assert (answers[0] == 0) == (point in ACCEPTING and point != "answered")
    assert (await hooks.github("push", push("and the end"))).status == 202
    await hooks.delivered("and the end", user=BOB)
    assert hooks.count("through it all", user=BOB) == 1
    assert hooks.failed() == []


# ---- subscriptions ----


async def test_a_user_subscribes_to_what_he_may_and_an_admin_to_anything(hooks: HookSet) -> None:
    found = await hooks.call(Subscribe(user="bob", add="Acme/API"))
    assert (found.fixed, found.repositories) == (["acme/site"], ["acme/api"])
    assert found.endpoint == "https://kai.example.org/webhook/github"
    with pytest.raises(InvalidParameter, match="may add"):
        await hooks.call(Subscribe(user="bob", add="other/thing"))
    await hooks.call(Subscribe(user="alice", add="Other/Thing"))
    assert (await hooks.call(ListRepositories())).names == ["acme/api", "acme/site", "other/thing"]
    await hooks.launcher.services["kai-webhook"].stop()
    await hooks.github("push", push("to bob", repository="acme/api"))
    await hooks.delivered("to bob", user=BOB)
    assert (await hooks.call(Subscribe(user="bob", remove="acme/api"))).repositories == []
    await hooks.github("push", push("to nobody", repository="acme/api"))
    await hooks.delivered("to nobody", user=ALICE)


@pytest.mark.parametrize(
    "name", ["acme", "acme/", "/site", "acme/site/x", "acme/..", "-acme/site", "acme/ü", "a b/c", ""]
)
async def test_what_is_no_repository_is_refused(hooks: HookSet, name: str) -> None:
    if not name:
        assert (await hooks.call(Subscribe(user="bob"))).repositories == []
        return
    with pytest.raises(InvalidParameter):
        await hooks.call(Subscribe(user="bob", add=name))


async def test_notices_go_to_a_chat_that_the_admin_allowed_and_nobody_there_is_admitted(hooks: HookSet) -> None:
    hooks.api.declare_group(GROUP, title="team")
    with pytest.raises(InvalidParameter, match="notify_chats"):
        await hooks.call(Subscribe(user="bob", chat=STRANGER))
    assert (await hooks.call(Subscribe(user="bob", chat=GROUP))).chat == GROUP
    await hooks.github("push", push("for the team"))
    await hooks.delivered("for the team", user=GROUP)
    assert hooks.count("for the team", user=BOB) == 0
    assert (await hooks.call(Subscribe(user="bob", chat=0))).chat == 0
    await hooks.github("push", push("for him alone"))
    await hooks.delivered("for him alone", user=BOB)


async def test_what_was_chosen_stays_and_is_nobody_elses(hooks: HookSet) -> None:
    await hooks.call(Subscribe(user="bob", add="acme/api", reviews=True))
    await hooks.launcher.services["kai-webhook"].stop()
    mine = await hooks.call(ListSubscriptions(user="bob"))
    assert (mine.repositories, mine.reviews, mine.triage) == (["acme/api"], True, False)
    assert (await hooks.call(ListSubscriptions(user="alice"))).repositories == []


async def test_it_leaves_when_it_is_idle_and_comes_back(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = HookSet(await stages(users=USERS))
    assert (await request(hooks.socket, "GET", "/health")).status == 200
    service = hooks.launcher.services["kai-webhook"]
    await asyncio.wait_for(service.exited.wait(), 90)
    assert service.exit_status == 0
    assert (await hooks.github("push", push("after the nap"))).status == 202
    await hooks.delivered("after the nap", user=BOB)


async def test_a_broken_configuration_is_told_and_nothing_is_lost(hooks: HookSet) -> None:
    await hooks.bot_leaves()
    await hooks.github("push", push("before"))
    await hooks.launcher.services["kai-webhook"].stop()
    path: Any = hooks.launcher.directory / "etc/kai.yaml"
    good = path.read_text()
    path.write_text("nonsense: [")
    answer = await hooks.github("push", push("while broken"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")
    with pytest.raises(Misconfigured, match=r"kai\.yaml"):
        await hooks.read()
    assert (await hooks.request("GET", "/health")).status == 503
    path.write_text(good)
    hooks.bot_returns()
    await hooks.launcher.services["kai-webhook"].stop()
    await hooks.read()
    await hooks.delivered("before", user=BOB)


async def test_a_damaged_file_holds_nothing_up(hooks: HookSet) -> None:
    await hooks.bot_leaves()
    await hooks.github("push", push("behind it"))
    await hooks.launcher.services["kai-webhook"].stop()
    (hooks.state / "spool" / f"{1:020d}-damaged").write_bytes(b"\x00 no head\n")
    hooks.bot_returns()
    await hooks.read()
    await hooks.delivered("behind it", user=BOB)
    assert [name[21:] for name in hooks.spooled()] == ["damaged"]
    assert "can't be read" in hooks.log
