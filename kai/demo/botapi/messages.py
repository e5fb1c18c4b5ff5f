"""API methods that put words on the screen and take them away: messages, edits, drafts, actions, reactions."""

from __future__ import annotations

import time
from typing import Any

from kai.demo.botapi.answers import JsonDict, bad
from kai.demo.botapi.entities import formatted, utf16_length, utf16_slice
from kai.demo.botapi.keyboard import inline_keyboard
from kai.demo.botapi.params import Params
from kai.demo.botapi.reactions import is_allowed
from kai.demo.botapi.views import ActionView, DraftView
from kai.demo.botapi.world import Chat, Message, World

_ACTIONS = frozenset((
    "typing", "upload_photo", "record_video", "upload_video", "record_voice", "upload_voice", "upload_document",
    "choose_sticker", "find_location", "record_video_note", "upload_video_note",
))  # fmt: skip
_MAX_CALLBACK_TEXT = 200  # characters
DELETABLE = 48 * 3600
"""Seconds after which a message can't be deleted any more."""
_MAX_QUOTE = 1024  # UTF-16 units


def send_message(world: World, params: Params) -> JsonDict:
    """sendMessage."""
    text, entities = params.message_text()
    params.structure("link_preview_options", what="link preview options")
    extras = Extras(world, params)
    chat = target_chat(world, params)
    content: JsonDict = {"text": text, **({"entities": entities} if entities else {})}
    return world.add_message(chat, world.bot, {**content, **extras.fields(chat)}).wire


def edit_message_text(world: World, params: Params) -> JsonDict:
    """editMessageText: of the bot's own messages; without reply_markup the keyboard goes."""
    text, entities = params.message_text()
    markup = inline_keyboard(params.structure("reply_markup", what="reply keyboard markup"), only_inline=True)
    message = _own_message(world, params)
    if "text" not in message.wire:
        raise bad("there is no text in the message to edit")
    return _edit(world, message, {"text": text, "entities": entities or None, "reply_markup": markup})


def edit_message_reply_markup(world: World, params: Params) -> JsonDict:
    """editMessageReplyMarkup: the keyboard alone."""
    markup = inline_keyboard(params.structure("reply_markup", what="reply keyboard markup"), only_inline=True)
    return _edit(world, _own_message(world, params), {"reply_markup": markup})


def delete_message(world: World, params: Params) -> bool:
    """deleteMessage: the bot's own anywhere, everybody's in a private chat."""
    if not params.text("message_id"):
        raise bad("message identifier is not specified")
    chat = world.chat(params.text("chat_id"))
    message = world.message(chat, params.integer("message_id"), what="message to delete")
    if not (message.by_bot or chat.private):
        raise bad("message can't be deleted")
    if time.time() - message.wire["date"] > DELETABLE:
        raise bad("message can't be deleted for everyone")
    world.delete_message(message)
    return True


def send_chat_action(world: World, params: Params) -> bool:
    """sendChatAction."""
    action = params.text("action").lower()
    if action not in _ACTIONS:
        raise bad("wrong parameter action in request")
    chat = target_chat(world, params)
    seen = ActionView(chat.wire["id"], action, time.monotonic())
    chat.actions.append(seen)
    world.journal.note("action", chat_id=seen.chat_id, data={"action": action})
    return True


def send_message_draft(world: World, params: Params) -> bool:
    """sendMessageDraft: a preview of 30 s in a private chat, replaced by the next one of the same draft_id."""
    text, entities = params.draft_text()
    chat = target_chat(world, params)
    if not chat.private:
        raise bad("TEXTDRAFT_PEER_INVALID")
    draft_id = params.integer("draft_id")
    if draft_id == 0:
        raise bad("draft_id must be non-zero")
    draft = DraftView(chat.wire["id"], draft_id, text, entities, time.monotonic())
    chat.draft = draft
    chat.drafts.append(draft)
    data = {"draft_id": draft_id, "text": text, "entities": entities}
    world.journal.note("draft", chat_id=draft.chat_id, data=data)
    return True


def answer_callback_query(world: World, params: Params) -> bool:
    """answerCallbackQuery: once and in time."""
    text = params.text("text")
    if len(text) > _MAX_CALLBACK_TEXT:
        raise bad("MESSAGE_TOO_LONG")
    if params.text("url"):
        raise bad("URL_INVALID")  # only games and t.me links of the bot have one
    world.answer_callback(params.text("callback_query_id"), text, show_alert=params.boolean("show_alert"))
    return True


def set_message_reaction(world: World, params: Params) -> bool:
    """setMessageReaction: at most one, from the list; none takes it away."""
    wanted = params.structure("reaction", what="reaction types")
    if wanted is not None and not isinstance(wanted, list):
        raise bad("expected an Array of ReactionType")
    emoji = [_emoji(reaction) for reaction in wanted or []]
    chat = world.chat(params.text("chat_id"))
    message = world.message(chat, params.integer("message_id"), what="message to react")
    if len(emoji) > 1:
        raise bad("REACTIONS_TOO_MANY")
    if not all(is_allowed(one) for one in emoji):
        raise bad("REACTION_INVALID")
    message.reactions = emoji
    world.journal.note(
        "reaction", chat_id=chat.wire["id"], message_id=message.wire["message_id"], data={"reactions": emoji}
    )
    return True


def _emoji(reaction: Any) -> str:
    if not isinstance(reaction, dict):
        raise bad("can't parse ReactionType: expected an Object")
    kind = reaction.get("type")
    if kind == "custom_emoji":
        raise bad("REACTION_INVALID")  # a private chat allows none
    if kind != "emoji":
        raise bad("can't parse ReactionType: invalid reaction type specified")
    emoji = reaction.get("emoji")
    if not isinstance(emoji, str) or not emoji:
        raise bad('can\'t parse ReactionType: Field "emoji" must be of type String')
    return emoji


class Extras:
    """What every kind of message may carry besides its content: keyboard and reply.

    Parsing comes before the chat is looked at, as Telegram does it: whoever makes both mistakes hears of the form.
    """

    def __init__(self, world: World, params: Params) -> None:
        self._world = world
        self._markup = inline_keyboard(params.structure("reply_markup", what="reply keyboard markup"))
        self._thread = params.integer("message_thread_id")
        self._reply = params.structure("reply_parameters", what="reply parameters")
        if self._reply is not None and not isinstance(self._reply, dict):
            raise bad("object expected as reply parameters")
        if self._reply and type(self._reply.get("message_id")) is not int:
            raise bad('field "message_id" must be of type Number')

    def fields(self, chat: Chat) -> JsonDict:
        """The extras in wire form; ApiError where the reply doesn't fit the chat."""
        fields: JsonDict = {"reply_markup": self._markup} if self._markup else {}
        if self._thread:
            fields |= {"message_thread_id": self._thread, "is_topic_message": True}
        if not self._reply:
            return fields
        if str(self._reply.get("chat_id", chat.wire["id"])) != str(chat.wire["id"]):
            raise bad("replies to another chat aren't part of this stand-in")
        message = chat.messages.get(self._reply["message_id"])
        if message is None or message.deleted:
            if not self._reply.get("allow_sending_without_reply"):
                raise bad("message to be replied not found")
            return fields
        fields["reply_to_message"] = self._world.quoted(message)
        if self._reply.get("quote"):
            fields["quote"] = _quote(self._reply, message)
        return fields


def _quote(reply: JsonDict, message: Message) -> JsonDict:
    """The quoted part, which must stand in the message as it is."""
    if reply.get("quote_parse_mode"):
        raise bad("can't parse entities: quotes with a parse_mode aren't part of this stand-in; send quote_entities")
    text, entities = formatted(str(reply["quote"]), reply.get("quote_entities"))
    if utf16_length(text) > _MAX_QUOTE:
        raise bad("QUOTE_TEXT_INVALID")
    whole = message.text() or ""
    position = reply.get("quote_position", 0)
    if type(position) is not int or utf16_slice(whole, position, utf16_length(text)) != text:
        found = whole.find(text)
        if found < 0:
            raise bad("QUOTE_TEXT_INVALID")
        position = utf16_length(whole[:found])
    quote: JsonDict = {"text": text, "position": position, "is_manual": True}
    if entities:
        quote["entities"] = entities
    return quote


def target_chat(world: World, params: Params) -> Chat:
    """The chat something goes to, and the topic in it that is named."""
    chat = world.chat_for_sending(params.text("chat_id"))
    thread = params.integer("message_thread_id")
    if thread and thread not in chat.topics:
        raise bad("message thread not found")
    return chat


def _own_message(world: World, params: Params) -> Message:
    if params.text("inline_message_id"):
        raise bad("MESSAGE_ID_INVALID")  # no inline mode here
    chat = world.chat_for_sending(params.text("chat_id"))
    message = world.message(chat, params.integer("message_id"), what="message to edit")
    if not message.by_bot:
        raise bad("message can't be edited")
    return message


def _edit(world: World, message: Message, fields: JsonDict) -> JsonDict:
    if all(message.wire.get(name) == value for name, value in fields.items()):
        raise bad(
            "message is not modified: specified new message content and reply markup are exactly the same as a "
            "current content and reply markup of the message"
        )
    world.change_message(message, fields)
    return message.wire
