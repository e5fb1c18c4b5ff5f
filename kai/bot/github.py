"""/github and /webhooks: what a user hears of GitHub, and how the intake of webhooks does.

kai-webhook keeps the subscriptions and says what a user may have; it is always told whose row this is.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TypeVar

import msgspec

from kai.bot.invocation import PATIENCE, Invocation, Misused, Refused
from kai.bot.message import Body, Code, compose
from kai.bot.settings import Pieces, two
from kai.interfaces import IntakeState, ListSubscriptions, ReadIntake, Subscribe, Subscriptions
from kai.lib.client import delays
from kai.lib.schedules import span
from kai.lib.varlink import Busy, Call, Fault, InvalidParameter, Misconfigured, Unavailable

R = TypeVar("R", bound=msgspec.Struct)
ANSWER = 10.0
"""Seconds for an answer of kai-webhook."""
EVENTS = "push, pull_request, issues, issue_comment, pull_request_review, release, workflow_run"
PLACE = "/etc/credstore/kai-webhook/github"
MOST_SHOWN = 40
_CHAT = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_SWITCH = {"on": True, "off": False}
logger = logging.getLogger(__name__)


async def github(asked: Invocation) -> list[Body]:
    """All forms of /github."""
    verb, rest = two(asked.arguments)
    verb = verb.lower()
    if not verb:
        return _shown(await _ask(asked, ListSubscriptions(user=asked.row.user)))
    if verb not in ("add", "remove", "reviews", "triage", "notify"):
        raise Misused("What is to be done isn't said.")
    if not rest or len(rest.split()) > 1:
        raise Misused(f"/github {verb} needs one word more.")
    return await {"add": _add, "remove": _remove, "notify": _notify}.get(verb, _switch)(asked, rest)


async def webhooks(asked: Invocation) -> list[Body]:
    return _state(await _ask(asked, ReadIntake()), time.time())


async def _add(asked: Invocation, name: str) -> list[Body]:
    found = await _ask(asked, Subscribe(user=asked.row.user, add=name))
    pieces: Pieces = ["✓ You hear of ", Code(name), ".\n\nGitHub has to know where to report. In the repository's "
                      "Settings, Webhooks, Add webhook:\n"]  # fmt: skip
    if found.endpoint:
        pieces += ["• Payload URL: ", Code(found.endpoint), "\n"]
    else:
        pieces += ["• Payload URL: the host's public address with ", Code("/webhook/github"), " (",
                   Code("webhook.url"), " in kai.yaml isn't set)\n"]  # fmt: skip
    pieces += [
        "• Content type: ", Code("application/json"), "\n• Secret: the one in ", Code(PLACE),
        " on the host; your admin has it\n• Events: ", Code(EVENTS),
    ]  # fmt: skip
    return compose(*pieces)


async def _remove(asked: Invocation, name: str) -> list[Body]:
    before = await _ask(asked, ListSubscriptions(user=asked.row.user))
    if name.lower() in (each.lower() for each in before.fixed):
        raise Refused(f"{name} stands in users.yaml: your admin can take it out.")
    if name.lower() not in before.repositories:
        raise Refused(f"You haven't added {name}.")
    await _ask(asked, Subscribe(user=asked.row.user, remove=name))
    return compose("✓ You hear no more of ", Code(name), ", but for what concerns you.")


async def _switch(asked: Invocation, value: str) -> list[Body]:
    which, _ = two(asked.arguments)
    if value.lower() not in _SWITCH:
        raise Misused(f"{which.capitalize()} can be on or off.")
    on = _SWITCH[value.lower()]
    call = Subscribe(user=asked.row.user)
    if which.lower() == "reviews":
        call.reviews = on
    else:
        call.triage = on
    return _shown(await _ask(asked, call))


async def _notify(asked: Invocation, where: str) -> list[Body]:
    if where.lower() == "reset":
        return _shown(await _ask(asked, Subscribe(user=asked.row.user, chat=0)))
    if not _CHAT.fullmatch(where):
        raise Misused("A chat is named by its number.")
    found = await _ask(asked, Subscribe(user=asked.row.user, chat=int(where)))
    asked.lanes.sender.unblock(int(where))  # it may have been closed when the bot wasn't in it yet
    return _shown(found)


def _shown(found: Subscriptions) -> list[Body]:
    names = sorted({*(each.lower() for each in found.fixed), *found.repositories})
    pieces: Pieces = ["You hear of what concerns you at GitHub"]
    if names:
        pieces.append(", and of:")
        for name in names[:MOST_SHOWN]:
            pieces += ["\n• ", Code(name)]
        if len(names) > MOST_SHOWN:
            pieces.append(f"\n… and {len(names) - MOST_SHOWN} more")
    else:
        pieces.append("; you are subscribed to no repository.")
    where: Pieces = ["chat ", Code(str(found.chat))] if found.chat else ["this chat"]
    pieces += ["\n\nNotices: ", *where]
    if found.chats:
        pieces += ["; it may be ", *_several([str(chat) for chat in found.chats])]
    pieces.append(f"\nReviews: {_word(found.reviews)}\nTriage: {_word(found.triage)}\nYou may add: ")
    pieces += ["any repository"] if found.allowed == ["*/*"] else _several(found.allowed) or ["none"]
    return compose(*pieces)


def _state(found: IntakeState, now: float) -> list[Body]:
    pieces: Pieces = ["Webhooks: "]
    pieces += [Code(found.endpoint)] if found.endpoint else ["no public address (", Code("webhook.url"), ")"]
    github = "open" + (", two secrets are valid" if found.rotating else "") if found.github else "closed, no secret"
    pieces.append(f"\nGitHub: {github}\nOther programs: {'open' if found.generic else 'closed, no secret'}")
    if found.last_at:
        pieces.append(f"\nLast event: {found.last}, {span(max(now - found.last_at, 0))} ago")
    else:
        pieces.append("\nLast event: none yet")
    waits = f", the oldest since {span(max(now - found.oldest_at, 0))}" if found.oldest_at else ""
    pieces.append(f"\nTo be delivered: {found.stored}{waits}")
    if found.failed:
        pieces.append(f"\nGiven up: {found.failed}, kai webhooks on the host tells more")
    if found.trouble:
        pieces.append(f"\n⚠ {found.trouble}")
    return compose(*pieces)


def _several(names: list[str]) -> Pieces:
    pieces: Pieces = []
    for name in names:
        pieces += [", ", Code(name)] if pieces else [Code(name)]
    return pieces


def _word(switch: bool) -> str:
    return "on" if switch else "off"


async def _ask(asked: Invocation, call: Call[R]) -> R:
    """kai-webhook's answer; a call may be made twice. Raises Refused with what the user is told."""
    deadline = time.monotonic() + PATIENCE["control"]
    for delay in delays():
        try:
            return await asked.lanes.intake.call(call, timeout=ANSWER)
        except InvalidParameter as fault:
            raise Refused(str(fault).partition(": ")[2] or str(fault)) from None
        except (Unavailable, Busy) as error:
            logger.warning("%s: %s", call.NAME, error)
            if time.monotonic() + delay > deadline:
                what = "is busy" if isinstance(error, Busy) else "does not answer"
                raise Refused(f"kai-webhook {what}: {error}") from None
            await asyncio.sleep(delay)
        except Misconfigured as fault:
            raise Refused(f"kai-webhook can't start: {fault}") from None
        except Fault as fault:
            raise Refused(str(fault)) from None
    raise AssertionError("delays never end")
