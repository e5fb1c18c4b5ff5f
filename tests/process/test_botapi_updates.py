"""The Bot API stand-in's getUpdates and webhooks, and what people's doings look like to python-telegram-bot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import telegram
from telegram import Bot
from telegram.error import BadRequest, Conflict
from telegram.request import HTTPXRequest

from kai.demo.botapi.images import grey_png
from kai.demo.botapi.server import BotApi

TOKEN = "4242:secret-of-the-test"
ALICE, BOB = 1001, 1002


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    server = BotApi(token=TOKEN)
    await server.start()
    server.declare_user(ALICE, first_name="Alice")
    yield server
    await server.stop()


@pytest.fixture
async def bot(api: BotApi) -> AsyncIterator[Bot]:
    async with make_bot(api) as one:
        yield one


def make_bot(api: BotApi) -> Bot:
    pools = [HTTPXRequest(connection_pool_size=4, httpx_kwargs={"trust_env": False}) for _ in range(2)]
    return Bot(TOKEN, base_url=api.base_url, request=pools[0], get_updates_request=pools[1])


def texts(updates: tuple[telegram.Update, ...]) -> list[str | None]:
    return [update.message.text if update.message else None for update in updates]


async def test_updates_are_handed_out_again_until_they_are_acknowledged(api: BotApi, bot: Bot) -> None:
    for text in ("one", "two", "three"):
        api.say(ALICE, text)
    first = await bot.get_updates()
    assert texts(first) == texts(await bot.get_updates()) == ["one", "two", "three"]
    assert [one.handed_out for one in api.pending()] == [2, 2, 2]
    assert texts(await bot.get_updates(offset=first[1].update_id + 1)) == ["three"]
    assert len(api.pending()) == 1
    assert await bot.get_updates(offset=first[2].update_id + 1) == ()
    assert api.pending() == []


async def test_limit_bounds_an_answer_and_a_negative_offset_keeps_the_last(api: BotApi, bot: Bot) -> None:
    for at in range(5):
        api.say(ALICE, str(at))
    assert texts(await bot.get_updates(limit=2)) == ["0", "1"]
    assert texts(await bot.get_updates(offset=-2)) == ["3", "4"]
    assert texts(await bot.get_updates()) == ["3", "4"]


async def test_a_long_poll_answers_when_something_comes_and_when_time_is_over(api: BotApi, bot: Bot) -> None:
    poll = asyncio.create_task(bot.get_updates(timeout=30))
    await api.wait_polling()
    api.say(ALICE, "one")
    api.say(ALICE, "two")
    got = await poll
    assert texts(got) == ["one", "two"]  # said in one go, handed out in one go
    begin = time.monotonic()
    assert await bot.get_updates(offset=got[-1].update_id + 1, timeout=1) == ()
    assert 0.9 < time.monotonic() - begin < 3


async def test_a_second_poller_ends_the_first_with_409(api: BotApi, bot: Bot) -> None:
    first = asyncio.create_task(bot.get_updates(timeout=30))
    await api.wait_polling()
    async with make_bot(api) as other:
        second = asyncio.create_task(other.get_updates(timeout=30))
        with pytest.raises(Conflict) as caught:
            await first
        assert str(caught.value) == (
            "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
        )
        api.say(ALICE, "for the second")
        assert texts(await second) == ["for the second"]


async def test_a_poller_that_died_takes_nothing_with_it(api: BotApi, bot: Bot) -> None:
    async with make_bot(api) as dying:
        poll = asyncio.create_task(dying.get_updates(timeout=30))
        await api.wait_polling()
        poll.cancel()
        await api.wait_for(lambda: not api.updates.polling)
    api.say(ALICE, "still there")
    assert texts(await bot.get_updates(timeout=5)) == ["still there"]


async def test_only_asked_for_kinds_are_queued_and_the_choice_is_remembered(api: BotApi, bot: Bot) -> None:
    await bot.get_updates(allowed_updates=["edited_message"])
    said = api.say(ALICE, "unheard")
    assert said.update_id is None
    api.edit(ALICE, said.message_id, "heard")
    (update,) = await bot.get_updates()
    assert update.edited_message is not None
    assert update.edited_message.text == "heard"
    assert update.edited_message.edit_date is not None
    await bot.get_updates(offset=update.update_id + 1, allowed_updates=[])
    assert api.say(ALICE, "heard again").update_id is not None


async def test_a_raw_update_is_handed_out_even_when_its_number_was_used_before(api: BotApi, bot: Bot) -> None:
    api.say(ALICE, "one")
    (seen,) = await bot.get_updates()
    offset = seen.update_id + 1
    assert await bot.get_updates(offset=offset) == ()
    assert api.inject(seen.to_dict()) == seen.update_id
    (again,) = await bot.get_updates(offset=offset)
    assert again.update_id == seen.update_id
    assert await bot.get_updates(offset=offset) == ()
    assert api.inject({"poll_answer": {"poll_id": "1", "option_ids": []}}) == offset


async def test_a_webhook_is_stored_and_shuts_getupdates_out(api: BotApi, bot: Bot) -> None:
    poll = asyncio.create_task(bot.get_updates(timeout=30))
    await api.wait_polling()
    assert await bot.set_webhook("https://example.org/hook", secret_token="s", allowed_updates=["message"])
    with pytest.raises(Conflict, match="terminated by setWebhook"):
        await poll
    with pytest.raises(Conflict, match="can't use getUpdates method while webhook is active"):
        await bot.get_updates()
    api.say(ALICE, "waits")
    info = await bot.get_webhook_info()
    assert (info.url, info.pending_update_count, info.allowed_updates) == (
        "https://example.org/hook",
        1,
        ("message",),
    )
    assert await bot.delete_webhook(drop_pending_updates=True)
    assert await bot.get_updates() == ()
    assert (await bot.get_webhook_info()).url == ""


async def test_a_webhook_needs_https_and_a_plain_secret(bot: Bot) -> None:
    with pytest.raises(BadRequest, match=r"(?i)HTTPS URL must be provided"):
        await bot.set_webhook("http://example.org")
    with pytest.raises(BadRequest, match=r"(?i)secret token contains unallowed"):
        await bot.set_webhook("https://example.org", secret_token="not allowed")


async def test_a_person_is_who_was_declared(api: BotApi, bot: Bot) -> None:
    api.declare_user(BOB, first_name="Bob", last_name="B", username="bob", language_code="de")
    api.say(BOB, "hi")
    api.say(77, "a stranger")
    bob, stranger = [update.message for update in await bot.get_updates()]
    assert bob is not None
    assert bob.from_user is not None
    assert (bob.from_user.full_name, bob.from_user.language_code, bob.from_user.is_bot) == ("Bob B", "de", False)
    assert (bob.chat.type, bob.chat.id, bob.chat.username) == ("private", BOB, "bob")
    assert abs(bob.date.timestamp() - time.time()) < 5
    assert stranger is not None
    assert stranger.from_user is not None
    assert stranger.from_user.id == 77


async def test_commands_and_links_in_typed_text_are_marked(api: BotApi, bot: Bot) -> None:
    api.say(ALICE, "😀 /new@kai_demo_bot and /help, see https://example.org/a. Not a/b")
    api.say(ALICE, "/raw", entities=[])
    marked, bare = [update.message for update in await bot.get_updates()]
    assert marked is not None
    assert [(one.type, marked.parse_entity(one)) for one in marked.entities] == [
        ("bot_command", "/new@kai_demo_bot"),
        ("bot_command", "/help"),
        ("url", "https://example.org/a"),
    ]
    assert bare is not None
    assert bare.entities == ()


async def test_replies_quotes_and_forwards_say_what_they_are_of(api: BotApi, bot: Bot) -> None:
    asked = await bot.send_message(ALICE, "which 😀 colour?")
    api.say(ALICE, "red", reply_to=asked.message_id, quote="colour")
    api.say(ALICE, "look", forward_from=BOB)
    api.say(ALICE, "look", forward_from="Someone Hidden")
    channel = {"type": "channel", "date": 1, "chat": {"id": -9, "type": "channel", "title": "News"}, "message_id": 3}
    api.say(ALICE, "look", forward_origin=channel)
    reply, user, hidden, news = [update.message for update in await bot.get_updates()]
    assert reply is not None
    assert reply.reply_to_message is not None
    assert reply.reply_to_message.text == "which 😀 colour?"
    assert reply.quote is not None
    assert (reply.quote.text, reply.quote.position) == ("colour", 9)
    assert user is not None
    assert isinstance(user.forward_origin, telegram.MessageOriginUser)
    assert user.forward_origin.sender_user.id == BOB
    assert hidden is not None
    assert isinstance(hidden.forward_origin, telegram.MessageOriginHiddenUser)
    assert hidden.forward_origin.sender_user_name == "Someone Hidden"
    assert news is not None
    assert isinstance(news.forward_origin, telegram.MessageOriginChannel)
    assert news.forward_origin.chat.title == "News"


async def test_an_album_is_several_messages_of_one_group(api: BotApi, bot: Bot) -> None:
    photos = [api.put_file(grey_png(640, 480), kind="photo") for _ in range(2)]
    for at, photo in enumerate(photos):
        api.say(ALICE, "both" if at == 0 else None, photo=photo, media_group_id="g1")
    found = [update.message for update in await bot.get_updates()]
    assert [one.media_group_id for one in found if one] == ["g1", "g1"]
    assert [one.caption for one in found if one] == ["both", None]
    assert [(size.width, size.height) for one in found if one for size in one.photo] == [(90, 67), (640, 480)] * 2


async def test_a_group_is_no_private_chat_and_makes_none(api: BotApi, bot: Bot) -> None:
    api.declare_group(-5, title="Team")
    api.say(BOB, "hello all", chat_id=-5)
    (update,) = await bot.get_updates()
    assert update.message is not None
    assert (update.message.chat.type, update.message.chat.title) == ("group", "Team")
    assert (await bot.send_message(-5, "hello Bob")).chat.id == -5
    with pytest.raises(telegram.error.Forbidden, match="can't initiate"):
        await bot.send_message(BOB, "hello?")


@pytest.mark.parametrize("text", [None, "", "  ", "x" * 4097])
async def test_a_person_cant_send_what_no_app_sends(api: BotApi, text: str | None) -> None:
    with pytest.raises(ValueError, match="an app sends"):
        api.say(ALICE, text)
    with pytest.raises(ValueError, match="only own messages"):
        api.edit(BOB, api.say(ALICE, "mine").message_id, "yours", chat_id=ALICE)
    with pytest.raises(KeyError, match="not in chat"):
        api.say(ALICE, "x", reply_to=404)
