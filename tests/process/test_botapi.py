"""The Bot API stand-in as python-telegram-bot 22.8 meets it: every method of messages, and every refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import telegram
from telegram import (
    Bot,
    BotCommand,
    BotCommandScopeChat,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    MessageEntity,
    ReactionTypeEmoji,
    ReplyParameters,
)
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter
from telegram.request import HTTPXRequest

from kai.demo.botapi.flood import FloodLimits, realistic
from kai.demo.botapi.methods import METHODS
from kai.demo.botapi.server import BotApi

TOKEN = "4242:secret-of-the-test"
ALICE, BOB = 1001, 1002


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    server = BotApi(token=TOKEN)
    await server.start()
    server.declare_user(ALICE, first_name="Alice", username="alice")
    yield server
    await server.stop()


@pytest.fixture
async def bot(api: BotApi) -> AsyncIterator[Bot]:
    async with make_bot(api) as one:
        yield one


def make_bot(api: BotApi, token: str = TOKEN) -> Bot:
    direct = {"trust_env": False}
    return Bot(
        token,
        base_url=api.base_url,
        base_file_url=api.base_file_url,
        request=HTTPXRequest(connection_pool_size=8, httpx_kwargs=direct),
        get_updates_request=HTTPXRequest(connection_pool_size=4, httpx_kwargs=direct),
    )


def keyboard(*labels: str) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup([[InlineKeyboardButton(label, callback_data=label.lower()) for label in labels]])


async def raw(api: BotApi, method: str, **request: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"{api.base_url}{TOKEN}/{method}", **request)
        found: dict[str, Any] = answer.json()
        assert found["ok"] is (answer.status_code == 200)
        return found


# the bot itself


async def test_the_bot_is_who_its_token_says(bot: Bot) -> None:
    me = await bot.get_me()
    assert (me.id, me.is_bot, me.username) == (4242, True, "kai_demo_bot")


async def test_a_wrong_token_is_unauthorized_and_an_unknown_method_not_found(api: BotApi) -> None:
    for token in ("4242:wrong", "nonsense"):
        with pytest.raises(InvalidToken):
            async with make_bot(api, token):
                pass
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{api.base_url}4242:wrong/getMe")
        assert answer.json() == {"ok": False, "error_code": 401, "description": "Unauthorized"}
        answer = await client.get(f"{api.base_url}{TOKEN}/bogus")
        assert (answer.status_code, answer.json()["error_code"]) == (404, 404)
        assert (await client.get(f"{api.url}/elsewhere")).status_code == 404


def test_a_token_that_isnt_one_is_refused_at_once() -> None:
    for token in ("", "secret", "x:y", "12:"):
        with pytest.raises(ValueError, match="NUMBER:SECRET"):
            BotApi(token=token)


async def test_commands_are_kept_per_scope_and_language(api: BotApi, bot: Bot) -> None:
    await bot.set_my_commands([BotCommand("help", "What I can do"), ("stop", "Stop it")])
    await bot.set_my_commands([("hilfe", "Was ich kann")], scope=BotCommandScopeChat(ALICE), language_code="de")
    assert [one.command for one in await bot.get_my_commands()] == ["help", "stop"]
    assert [one.command for one in await bot.get_my_commands(BotCommandScopeChat(ALICE), "de")] == ["hilfe"]
    assert await bot.get_my_commands(BotCommandScopeChat(ALICE)) == ()
    await bot.delete_my_commands()
    assert await bot.get_my_commands() == ()
    assert [change.kind for change in api.changes(kinds=["commands"]).changes] == ["commands"] * 3


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("Help", "x"), "BOT_COMMAND_INVALID"),
        (("with-dash", "x"), "BOT_COMMAND_INVALID"),
        (("x" * 33, "x"), "BOT_COMMAND_INVALID"),
        (("help", " "), "description must be non-empty"),
        (("help", "x" * 257), "must not exceed 256"),
    ],
)
async def test_commands_that_telegram_refuses_are_refused(bot: Bot, command: tuple[str, str], says: str) -> None:
    with pytest.raises(BadRequest, match=f"(?i){says}"):
        await bot.set_my_commands([command])


async def test_a_chat_can_be_looked_up_in_full(api: BotApi, bot: Bot) -> None:
    api.declare_group(-5, title="Team")
    assert (await bot.get_chat(ALICE)).username == "alice"
    assert (await bot.get_chat(-5)).title == "Team"
    with pytest.raises(BadRequest, match="Chat not found"):
        await bot.get_chat(99)


# messages


async def test_a_message_arrives_as_it_was_sent(api: BotApi, bot: Bot) -> None:
    sent = await bot.send_message(
        ALICE,
        "bold 😀 code",
        entities=[MessageEntity("bold", 0, 4), MessageEntity("code", 8, 4)],
        reply_markup=keyboard("Yes", "No"),
    )
    assert sent.from_user is not None
    assert sent.from_user.is_bot
    assert abs(sent.date.timestamp() - asyncio.get_running_loop().time()) > 0  # a real date parsed
    (seen,) = api.messages(ALICE)
    assert (seen.message_id, seen.by_bot, seen.text) == (sent.message_id, True, "bold 😀 code")
    assert [one["type"] for one in seen.entities] == ["bold", "code"]
    assert seen.buttons == ["Yes", "No"]
    assert sent.parse_entity(sent.entities[1]) == "code"


async def test_every_form_of_body_is_understood(api: BotApi) -> None:
    text = {"chat_id": ALICE, "text": "ä😀&="}
    parts = {name: (None, str(value)) for name, value in text.items()}
    for request in ({"json": text}, {"data": text}, {"params": text}, {"files": parts}):
        assert (await raw(api, "sendMessage", **request))["result"]["text"] == "ä😀&="
    assert (await raw(api, "SENDMESSAGE", json=text))["ok"]


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
        {"content": b"[]", "headers": {"Content-Type": "application/json"}},
        {"content": b"chat_id=1001&text=%ff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": b'{"chat_id":1001,"text":"\\ud800"}', "headers": {"Content-Type": "application/json"}},
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        {"json": {"chat_id": 1001, "text": ["x"]}},
        {"data": {"chat_id": "1001", "text": "x", "entities": "{not json"}},
        {"data": {"chat_id": "1001", "text": "x", "reply_markup": '{"inline_keyboard":[[{"text":"\\ud83d"}]]}'}},
    ],
)
async def test_a_body_that_cant_be_read_is_a_bad_request(api: BotApi, request_: dict[str, Any]) -> None:
    answer = await raw(api, "sendMessage", **request_)
    assert answer["error_code"] == 400
    assert answer["description"].startswith("Bad Request: ")
    assert api.messages(ALICE) == []


async def test_text_has_1_to_4096_utf16_units_after_parsing(bot: Bot) -> None:
    assert (await bot.send_message(ALICE, "x" * 4096)).text == "x" * 4096
    assert (await bot.send_message(ALICE, "<b>" + "x" * 4096 + "</b>", parse_mode="HTML")).text == "x" * 4096
    for text in ("x" * 4097, "😀" * 2049):
        with pytest.raises(BadRequest, match="Message is too long"):
            await bot.send_message(ALICE, text)
    with pytest.raises(BadRequest, match="Message text is empty"):
        await bot.send_message(ALICE, "")
    with pytest.raises(BadRequest, match="Text must be non-empty"):
        await bot.send_message(ALICE, " \n")


async def test_html_is_parsed_and_markdown_refused_clearly(bot: Bot) -> None:
    sent = await bot.send_message(ALICE, "<b>x</b> &amp; <i>y</i>", parse_mode="HTML")
    assert sent.text == "x & y"
    assert [one.type for one in sent.entities] == ["bold", "italic"]
    for text, mode, says in (
        ("<b>x", "HTML", "end tag"),
        ("*x*", "MarkdownV2", "reads no Markdown"),
        ("x", "Klingon", "arse_mode"),
    ):
        with pytest.raises(BadRequest, match=f"(?i){says}"):
            await bot.send_message(ALICE, text, parse_mode=mode)


@pytest.mark.parametrize(
    "entities",
    [
        [MessageEntity("bold", 3, 5)],
        [MessageEntity("bold", 0, 3), MessageEntity("italic", 2, 3)],
        [MessageEntity("pre", 0, 5), MessageEntity("bold", 1, 2)],
        [MessageEntity("text_link", 0, 2)],
        [MessageEntity("nonsense", 0, 2)],
    ],
)
async def test_entities_that_dont_fit_are_refused(bot: Bot, entities: list[MessageEntity]) -> None:
    with pytest.raises(BadRequest, match=r"[Cc]an't parse entities: "):
        await bot.send_message(ALICE, "hello", entities=entities)
    message = await bot.send_message(ALICE, "before")
    with pytest.raises(BadRequest, match=r"[Cc]an't parse entities: "):
        await message.edit_text("hello", entities=entities)


async def test_only_chats_that_wrote_or_were_declared_can_be_written_to(api: BotApi, bot: Bot) -> None:
    with pytest.raises(BadRequest, match="Chat not found"):
        await bot.send_message(BOB, "hello")
    with pytest.raises(BadRequest, match="Chat not found"):
        await bot.send_message("@nobody", "hello")
    api.declare_user(BOB, started=False)
    with pytest.raises(Forbidden, match="can't initiate conversation"):
        await bot.send_message(BOB, "hello")
    api.say(BOB, "hi")
    assert await bot.send_message(BOB, "hello")


async def test_a_bot_that_is_blocked_can_put_nothing_on_the_screen(api: BotApi, bot: Bot) -> None:
    message = await bot.send_message(ALICE, "hello")
    api.block(ALICE)
    for attempt in (
        bot.send_message(ALICE, "more"),
        message.edit_text("other"),
        bot.send_chat_action(ALICE, "typing"),
        bot.send_message_draft(ALICE, 1, "more"),
    ):
        with pytest.raises(Forbidden, match="Forbidden: bot was blocked by the user"):
            await attempt
    with pytest.raises(ValueError, match="unblock first"):
        api.say(ALICE, "hello?")
    api.block(ALICE, blocked=False)
    await bot.send_message(ALICE, "back")
    members = [one.my_chat_member for one in await bot.get_updates() if one.my_chat_member]
    assert [one.new_chat_member.status for one in members] == ["kicked", "member"]


async def test_message_ids_and_update_ids_only_grow(api: BotApi, bot: Bot) -> None:
    ids = [(await bot.send_message(ALICE, "x")).message_id, api.say(BOB, "y").message_id]
    ids.append((await bot.send_message(BOB, "z")).message_id)
    assert ids == sorted(set(ids))
    api.say(ALICE, "w")
    numbers = [one.update_id for one in await bot.get_updates()]
    assert numbers == [numbers[0], numbers[0] + 1]


async def test_replies_carry_the_message_they_answer(api: BotApi, bot: Bot) -> None:
    asked = api.say(ALICE, "what about the second part?").message_id
    sent = await bot.send_message(ALICE, "yes", reply_parameters=ReplyParameters(asked, quote="second part"))
    assert sent.reply_to_message is not None
    assert sent.reply_to_message.message_id == asked
    assert sent.quote is not None
    assert (sent.quote.text, sent.quote.position) == ("second part", 15)
    with pytest.raises(BadRequest, match="Message to be replied not found"):
        await bot.send_message(ALICE, "yes", reply_parameters=ReplyParameters(9999))
    with pytest.raises(BadRequest, match=r"(?i)QUOTE_TEXT_INVALID"):
        await bot.send_message(ALICE, "yes", reply_parameters=ReplyParameters(asked, quote="third"))
    alone = await bot.send_message(
        ALICE, "yes", reply_parameters=ReplyParameters(9999, allow_sending_without_reply=True)
    )
    assert alone.reply_to_message is None


async def test_an_edit_replaces_text_entities_and_keyboard_and_keeps_the_history(api: BotApi, bot: Bot) -> None:
    message = await bot.send_message(ALICE, "one", reply_markup=keyboard("Stop"))
    edited = await bot.edit_message_text("two", ALICE, message.message_id, entities=[MessageEntity("bold", 0, 3)])
    assert isinstance(edited, telegram.Message)
    assert edited.edit_date is not None
    assert edited.reply_markup is None
    await bot.edit_message_reply_markup(ALICE, message.message_id, reply_markup=keyboard("Again"))
    seen = api.message_view(ALICE, message.message_id)
    assert [(one.text, bool(one.entities), bool(one.reply_markup)) for one in seen.versions] == [
        ("one", False, True),
        ("two", True, False),
        ("two", True, True),
    ]
    assert [one.at for one in seen.versions] == sorted(one.at for one in seen.versions)


async def test_an_edit_that_changes_nothing_is_refused_with_telegrams_words(bot: Bot) -> None:
    bold = [MessageEntity("bold", 0, 3)]
    message = await bot.send_message(ALICE, "one", entities=bold, reply_markup=keyboard("Stop"))
    words = (
        "Message is not modified: specified new message content and reply markup are exactly the same as a current "
        "content and reply markup of the message"
    )
    for again in (
        message.edit_text("one", entities=bold, reply_markup=keyboard("Stop")),
        message.edit_text("one \n", entities=bold, reply_markup=keyboard("Stop")),
        message.edit_reply_markup(keyboard("Stop")),
    ):
        with pytest.raises(BadRequest) as caught:
            await again
        assert str(caught.value) == words
    assert await message.edit_text("one", reply_markup=keyboard("Stop"))  # other entities are a change
    assert await message.edit_text("one")  # and so is no keyboard


async def test_only_own_messages_that_are_there_can_be_edited(api: BotApi, bot: Bot) -> None:
    with pytest.raises(BadRequest, match="Message to edit not found"):
        await bot.edit_message_text("x", ALICE, 77)
    with pytest.raises(BadRequest, match="Message can't be edited"):
        await bot.edit_message_text("x", ALICE, api.say(ALICE, "mine").message_id)
    message = await bot.send_message(ALICE, "gone soon")
    api.delete(ALICE, message.message_id)
    with pytest.raises(BadRequest, match="Message to edit not found"):
        await message.edit_text("x")


async def test_messages_are_deleted_once(api: BotApi, bot: Bot) -> None:
    message = await bot.send_message(ALICE, "x")
    code = api.say(ALICE, "123456").message_id
    assert await message.delete()
    assert await bot.delete_message(ALICE, code)
    assert api.messages(ALICE) == []
    assert [one.text for one in api.messages(ALICE, deleted=True)] == ["x", "123456"]
    with pytest.raises(BadRequest, match="Message to delete not found"):
        await message.delete()
    api.declare_group(-5)
    other = api.say(BOB, "in the group", chat_id=-5).message_id
    with pytest.raises(BadRequest, match="Message can't be deleted"):
        await bot.delete_message(-5, other)


@pytest.mark.parametrize(
    ("button", "says"),
    [
        ({"text": "x", "callback_data": "d" * 65}, "BUTTON_DATA_INVALID"),
        ({"text": "x", "callback_data": "ä" * 33}, "BUTTON_DATA_INVALID"),
        ({"text": "x", "callback_data": ""}, "Text buttons are unallowed"),
        ({"text": "x"}, "Text buttons are unallowed"),
        ({"text": " ", "callback_data": "d"}, "button text must be non-empty"),
        ({"callback_data": "d"}, '"text" must be of type String'),
        ({"text": "x", "url": "nowhere"}, "is invalid: Wrong HTTP URL"),
        ({"text": "x", "callback_data": "d", "url": "https://example.org"}, "exactly one action"),
    ],
)
async def test_buttons_that_telegram_refuses_are_refused(api: BotApi, button: dict[str, str], says: str) -> None:
    markup = json.dumps({"inline_keyboard": [[button]]})
    answer = await raw(api, "sendMessage", data={"chat_id": ALICE, "text": "x", "reply_markup": markup})
    assert says in answer["description"]
    assert api.messages(ALICE) == []


async def test_too_many_buttons_and_other_keyboards_in_edits_are_refused(bot: Bot) -> None:
    with pytest.raises(BadRequest, match="Reply markup is too long"):
        await bot.send_message(ALICE, "x", reply_markup=keyboard(*(str(at) for at in range(101))))
    message = await bot.send_message(ALICE, "x", reply_markup=telegram.ReplyKeyboardRemove())
    assert message.reply_markup is None
    with pytest.raises(BadRequest, match="Inline keyboard expected"):
        await message.edit_text("y", reply_markup=telegram.ForceReply())  # type: ignore[arg-type]


async def test_a_message_thread_is_refused_where_there_are_no_topics(bot: Bot) -> None:
    with pytest.raises(BadRequest, match="Message thread not found"):
        await bot.send_message(ALICE, "x", message_thread_id=3)


# what isn't a message


async def test_chat_actions_are_seen_and_their_names_checked(api: BotApi, bot: Bot) -> None:
    for action in telegram.constants.ChatAction:
        await bot.send_chat_action(ALICE, action)
    assert [one.action for one in api.actions(ALICE)] == list(telegram.constants.ChatAction)
    with pytest.raises(BadRequest, match="Wrong parameter action in request"):
        await bot.send_chat_action(ALICE, "dancing")


async def test_a_draft_shows_until_the_message_comes(api: BotApi, bot: Bot) -> None:
    assert await bot.send_message_draft(ALICE, 7)
    assert await bot.send_message_draft(ALICE, 7, "grow", entities=[MessageEntity("bold", 0, 4)])
    assert await bot.send_message_draft(ALICE, 7, "growing")
    assert [one.text for one in api.drafts(ALICE)] == ["", "grow", "growing"]
    shown = api.draft_on_screen(ALICE)
    assert shown is not None
    assert shown.text == "growing"
    await bot.send_message(ALICE, "grown")
    assert api.draft_on_screen(ALICE) is None


async def test_drafts_need_a_private_chat_an_id_and_the_length(api: BotApi, bot: Bot) -> None:
    api.declare_group(-5)
    for chat, draft, text, says in (
        (-5, 1, "x", "TEXTDRAFT_PEER_INVALID"),
        (ALICE, 0, "x", "non-zero"),
        (ALICE, 1, "x" * 4097, "Message is too long"),
        (BOB, 1, "x", "Chat not found"),
    ):
        with pytest.raises(BadRequest, match=f"(?i){says}"):
            await bot.send_message_draft(chat, draft, text)


async def test_reactions_are_one_from_the_list(api: BotApi, bot: Bot) -> None:
    asked = api.say(ALICE, "please").message_id
    for emoji in telegram.constants.ReactionEmoji:
        assert await bot.set_message_reaction(ALICE, asked, emoji)
    await bot.set_message_reaction(ALICE, asked, "👀")
    assert api.message_view(ALICE, asked).reactions == ["👀"]
    with pytest.raises(BadRequest, match=r"(?i)REACTION_INVALID"):
        await bot.set_message_reaction(ALICE, asked, ReactionTypeEmoji("🥑"))
    with pytest.raises(BadRequest, match=r"(?i)REACTIONS_TOO_MANY"):
        await bot.set_message_reaction(ALICE, asked, ["👀", "👍"])
    with pytest.raises(BadRequest, match="Message to react not found"):
        await bot.set_message_reaction(ALICE, 999, "👀")
    await bot.set_message_reaction(ALICE, asked)
    assert api.message_view(ALICE, asked).reactions == []


async def test_a_pressed_button_is_answered_once(api: BotApi, bot: Bot) -> None:
    message = await bot.send_message(ALICE, "sure?", reply_markup=keyboard("Yes", "No"))
    pressed = api.press(ALICE, message.message_id, label="No")
    (update,) = await bot.get_updates()
    query = update.callback_query
    assert query is not None
    assert (query.id, query.data, query.from_user.id) == (pressed.callback_id, "no", ALICE)
    assert isinstance(query.message, telegram.Message)
    assert query.message.message_id == message.message_id
    assert await query.answer("fine", show_alert=True)
    seen = api.callback(pressed.callback_id)
    assert (seen.answered, seen.text, seen.show_alert) == (True, "fine", True)
    words = "Query is too old and response timeout expired or query id is invalid"
    for callback_id in (pressed.callback_id, "12345"):
        with pytest.raises(BadRequest, match=f"(?i){words}"):
            await bot.answer_callback_query(callback_id)


async def test_a_callback_query_must_be_answered_in_time(api: BotApi, bot: Bot) -> None:
    api.callback_timeout = 0.05
    message = await bot.send_message(ALICE, "sure?", reply_markup=keyboard("Yes"))
    pressed = api.press(ALICE, message.message_id, index=0)
    await asyncio.sleep(0.1)
    with pytest.raises(BadRequest, match="Query is too old"):
        await bot.answer_callback_query(pressed.callback_id)
    late = api.press(ALICE, message.message_id, data="yes")
    with pytest.raises(BadRequest, match=r"(?i)MESSAGE_TOO_LONG"):
        await bot.answer_callback_query(late.callback_id, "x" * 201)


async def test_only_buttons_that_are_there_can_be_pressed(api: BotApi, bot: Bot) -> None:
    markup = InlineKeyboardMarkup([[InlineKeyboardButton("Site", url="https://example.org")]])
    message = await bot.send_message(ALICE, "x", reply_markup=markup)
    with pytest.raises(ValueError, match="sends nothing to the bot"):
        api.press(ALICE, message.message_id, label="Site")
    with pytest.raises(ValueError, match="has no such button; it has \\['Site'\\]"):
        api.press(ALICE, message.message_id, index=1)


# flood limits


async def test_too_many_messages_are_429_with_the_seconds_to_wait(api: BotApi, bot: Bot) -> None:
    api.flood.set(FloodLimits(chat_rate=0.5, chat_burst=2))
    api.declare_user(BOB)
    await bot.send_message(ALICE, "1")
    await bot.send_message(ALICE, "2")
    with pytest.raises(RetryAfter) as caught:
        await bot.send_message(ALICE, "3")
    assert caught.value.retry_after == 2
    answer = api.calls("sendMessage")[-1].answer
    assert answer is not None
    assert answer["description"] == "Too Many Requests: retry after 2"
    assert answer["parameters"] == {"retry_after": 2}
    assert await bot.send_message(BOB, "other chats go on")
    assert len(api.messages(ALICE)) == 2


async def test_edits_and_the_whole_have_limits_of_their_own(api: BotApi, bot: Bot) -> None:
    message = await bot.send_message(ALICE, "0")
    api.flood.set(FloodLimits(edit_rate=0.1, edit_burst=1))
    await message.edit_text("1")
    with pytest.raises(RetryAfter):
        await message.edit_text("2")
    api.flood.set(FloodLimits(overall_rate=0.1, overall_burst=1))
    await bot.send_message(ALICE, "3")
    with pytest.raises(RetryAfter):
        await bot.send_message(ALICE, "4")
    api.flood.set(realistic())
    assert await message.edit_text("5")
    api.flood.set(FloodLimits())
    for at in range(40):
        await bot.send_message(ALICE, str(at))


# whatever comes


NASTY: tuple[Any, ...] = (
    "", " ", "x", "-1", "0", "9" * 20, "null", "[]", "{}", "[null]", '{"a":', "\x00", "😀", "https://[x",
    1.5, True, 10**40, [], {}, [[]], {"type": []}, [{"type": {}}], [{"type": "emoji", "emoji": []}],
    {"inline_keyboard": [[{"text": "x", "callback_data": []}]]}, {"inline_keyboard": [["x"]]}, {"keyboard": [[1]]},
    {"message_id": 1, "quote": [], "quote_position": "x"}, {"message_id": True}, [{"command": [], "description": 1}],
    [{"type": "bold", "offset": 10**30, "length": 1}], [{"type": "text_mention", "offset": 0, "length": 1, "user": 1}],
)  # fmt: skip
PARAMETERS = (
    "chat_id", "message_id", "text", "entities", "parse_mode", "reply_markup", "reply_parameters", "reaction",
    "action", "draft_id", "commands", "scope", "offset", "limit", "allowed_updates", "url", "file_id", "document",
    "photo", "caption", "caption_entities", "callback_query_id", "message_thread_id", "duration", "language_code",
)  # fmt: skip


async def test_no_parameter_makes_it_fail_where_it_should_refuse(api: BotApi) -> None:
    asked = api.say(ALICE, "hello").message_id
    good = {"chat_id": ALICE, "message_id": asked, "text": "x", "draft_id": 1, "action": "typing", "commands": []}
    async with httpx.AsyncClient(trust_env=False, base_url=f"{api.base_url}{TOKEN}") as client:
        for turn, method in enumerate(("getUpdates", *METHODS)):
            for at, parameter in enumerate(PARAMETERS):
                for value in NASTY[(turn + at) % 8 :: 8]:
                    answer = await client.post(f"/{method}", json={**good, parameter: value})
                    assert answer.status_code in (200, 400, 403, 404, 409), (method, parameter, value)
                    assert answer.json()["ok"] is (answer.status_code == 200)
    assert len(api.calls()) == api.state().calls


# the log


async def test_the_log_has_every_call_with_parameters_answer_and_times(api: BotApi, bot: Bot) -> None:
    await bot.send_message(ALICE, "x", entities=[MessageEntity("bold", 0, 1)])
    with pytest.raises(BadRequest):
        await bot.send_message(ALICE, "")
    good, wrong = api.calls("sendMessage")
    assert good.params["entities"] == [{"type": "bold", "offset": 0, "length": 1}]
    assert good.answer is not None
    assert good.answer["result"]["text"] == "x"
    assert (good.status, wrong.status) == (200, 400)
    assert good.answered is not None
    assert good.at <= good.answered <= wrong.at
    assert not good.lost
    assert [one.method for one in api.calls(since=good.seq)] == ["sendMessage"]


async def test_an_address_in_use_is_an_error(api: BotApi) -> None:
    with pytest.raises(OSError, match="in use"):
        await BotApi(token=TOKEN).start(port=api.port)
    with pytest.raises(RuntimeError, match="runs already"):
        await api.start()


async def test_a_stopped_server_ends_waiting_polls_and_can_start_again(api: BotApi, bot: Bot) -> None:
    poll = asyncio.create_task(bot.get_updates(timeout=30))
    await api.wait_polling()
    await api.stop()
    with pytest.raises((NetworkError, Conflict)):
        await poll
    port = api.port
    assert await api.start(port=port) == port
    assert await bot.get_me()


async def test_a_topic_is_there_until_it_is_deleted(api: BotApi, bot: Bot) -> None:
    api.open_topic(ALICE, 7)
    assert (await bot.send_message(ALICE, "x", message_thread_id=7)).message_thread_id == 7
    await bot.send_chat_action(ALICE, "typing", message_thread_id=7)
    assert api.message_view(ALICE, api.say(ALICE, "y", thread=7).message_id).wire["message_thread_id"] == 7
    api.close_topic(ALICE, 7)
    with pytest.raises(BadRequest, match="Message thread not found"):
        await bot.send_message(ALICE, "x", message_thread_id=7)
    with pytest.raises(ValueError, match="topic 7"):
        api.say(ALICE, "y", thread=7)
