"""The other side of the chat: what people do. They write, edit, press buttons, send files, block the bot.

People do what the apps let them: a mistake of whoever drives this is a ValueError (or KeyError for an unknown id),
not an answer of the Bot API.
"""

from __future__ import annotations

import re
import time
from typing import Any

from kai.demo.botapi.answers import JsonDict
from kai.demo.botapi.entities import formatted, utf16_length, utf16_slice
from kai.demo.botapi.files import StoredFile, Upload
from kai.demo.botapi.media import document_wire, voice_wire
from kai.demo.botapi.params import MAX_CAPTION, MAX_TEXT
from kai.demo.botapi.views import (
    ActionView,
    CallbackView,
    DraftView,
    MessageView,
    Pressed,
    Said,
    StateView,
)
from kai.demo.botapi.world import DRAFT_LIFE, Chat, Message, World

_COMMAND = re.compile(r"(?<!\S)/[A-Za-z0-9_]{1,64}(?:@[A-Za-z0-9_]{3,32})?(?![A-Za-z0-9_@/])")
_URL = re.compile(r"https?://[^\s<>\"]+[^\s<>\".,;:!?)]")


class People(World):
    """A world whose people can be moved."""

    def declare_user(
        self,
        user_id: int,
        *,
        first_name: str | None = None,
        last_name: str | None = None,
        username: str | None = None,
        language_code: str | None = None,
        started: bool = True,
    ) -> JsonDict:
        """Make a person and the private chat with them, or change the names. Returns the User.

        `started` False: the person exists, but the bot must not write first (403).
        """
        if user_id <= 0:
            raise ValueError(f"user id {user_id}: expected a positive number")
        names = {"first_name": first_name, "last_name": last_name, "username": username}
        known = self.people.get(user_id, {"id": user_id, "is_bot": False, "first_name": f"User {user_id}"})
        given = {**names, "language_code": language_code}
        user = {**known, **{name: value for name, value in given.items() if value is not None}}
        self.people[user_id] = user
        wire = {"id": user_id, "type": "private"}
        wire.update({name: user[name] for name in names if name in user})
        chat = self.chats.get(user_id)
        if chat:
            chat.wire = wire
            chat.started = chat.started or started
        else:
            self.chats[user_id] = Chat(wire, started)
        return user

    def declare_group(self, chat_id: int, *, title: str = "Group") -> None:
        """Make a group that the bot is in."""
        if chat_id >= 0:
            raise ValueError(f"group id {chat_id}: expected a negative number")
        self.chats.setdefault(chat_id, Chat({"id": chat_id, "type": "group", "title": title}, started=True))

    def open_topic(self, chat_id: int, thread: int) -> None:
        """A topic comes to be in a chat; `thread` is its message_thread_id."""
        self._chat_of(chat_id, None).topics.add(thread)

    def close_topic(self, chat_id: int, thread: int) -> None:
        """A topic is deleted; what was said in it stays readable."""
        self._chat_of(chat_id, None).topics.discard(thread)

    def put_file(
        self, data: bytes, *, name: str = "", mime: str = "", kind: str = "document", declared_size: int | None = None
    ) -> str:
        """Keep a file for `say`; returns its file_id. `kind` is document, photo or voice.

        With `declared_size` (bytes) the content is forgotten and only the size counts.
        """
        if kind not in ("document", "photo", "voice"):
            raise ValueError(f"kind of file {kind!r}: expected document, photo or voice")
        file = self.files.add(Upload(name, mime, data), kind=kind, declared_size=declared_size)
        if kind == "photo" and not file.width:
            if declared_size is None:
                raise ValueError("photo: expected the bytes of a PNG, JPEG, GIF or WebP picture")
            file.width, file.height = 1280, 960
        return file.file_id

    def say(
        self,
        user_id: int,
        text: str | None = None,
        *,
        chat_id: int | None = None,
        entities: list[JsonDict] | None = None,
        document: str | None = None,
        photo: str | None = None,
        voice: str | None = None,
        duration: int = 1,
        media_group_id: str | None = None,
        reply_to: int | None = None,
        quote: str | None = None,
        forward_from: int | str | None = None,
        forward_origin: JsonDict | None = None,
        date: int | None = None,
        thread: int | None = None,
    ) -> Said:
        """A person sends a message: text, or a file (an id of `put_file`) with `text` as its caption.

        `chat_id` is a declared group, else the private chat. Without `entities` bot commands and links are found as
        the apps find them. `forward_from` is a known user's id or a hidden user's name; `forward_origin` any
        MessageOrigin. `duration` (seconds) is a voice note's, `date` the message's unix time, `thread` an open topic.
        """
        user = self._speaker(user_id, private=chat_id in (None, user_id))
        chat = self._chat_of(user_id, chat_id)
        fields = self._content(text, entities, document=document, photo=photo, voice=voice, duration=duration)
        if media_group_id is not None:
            fields["media_group_id"] = media_group_id
        if thread is not None:
            if thread not in chat.topics:
                raise ValueError(f"topic {thread}: not open in chat {chat.wire['id']}; open_topic makes one")
            fields |= {"message_thread_id": thread, "is_topic_message": True}
        if reply_to is not None:
            fields.update(self._reply(chat, reply_to, quote))
        origin = forward_origin or self._origin(forward_from)
        if origin:
            fields["forward_origin"] = origin
        message = self.add_message(chat, user, fields, date=date)
        return Said(message.wire["message_id"], self.updates.push("message", message.wire))

    def edit(self, user_id: int, message_id: int, text: str, *, chat_id: int | None = None) -> Said:
        """A person edits an own message (its text or caption)."""
        message = self._message(self._chat_of(user_id, chat_id), message_id)
        if message.by_bot or message.wire["from"]["id"] != user_id:
            raise ValueError(f"message {message_id} isn't one of user {user_id}: only own messages can be edited")
        name, entities_name = ("text", "entities") if "text" in message.wire else ("caption", "caption_entities")
        text, found = _typed(text, None, limit=MAX_TEXT if name == "text" else MAX_CAPTION)
        self.change_message(message, {name: text, entities_name: found or None})
        return Said(message_id, self.updates.push("edited_message", message.wire))

    def press(
        self,
        user_id: int,
        message_id: int,
        *,
        index: int | None = None,
        label: str | None = None,
        data: str | None = None,
        chat_id: int | None = None,
    ) -> Pressed:
        """A person presses a callback button of the message as it stands: by position, label, or data.

        `data` needs no such button: apps may press one that an edit took away a moment ago.
        """
        user = self._speaker(user_id, private=chat_id in (None, user_id))
        chat = self._chat_of(user_id, chat_id)
        message = self._message(chat, message_id)
        if data is None:
            data = _button_data(message, index, label)
        callback_id = self.add_callback(chat.wire["id"], user_id, data)
        query = {
            "id": callback_id,
            "from": user,
            "message": message.wire,
            "chat_instance": str(-7_000_000_000 - chat.wire["id"]),
            "data": data,
        }
        return Pressed(callback_id, self.updates.push("callback_query", query))

    def block(self, user_id: int, *, blocked: bool = True) -> int | None:
        """A person blocks or unblocks the bot; returns the my_chat_member update's id."""
        chat = self._chat_of(user_id, None)
        if chat.blocked == blocked:
            return None
        chat.blocked = blocked
        self.journal.note("block", chat_id=user_id, data={"blocked": blocked})
        before, after = ("member", "kicked") if blocked else ("kicked", "member")
        update = {
            "chat": chat.wire,
            "from": self.people[user_id],
            "date": int(time.time()),
            "old_chat_member": self._membership(before),
            "new_chat_member": self._membership(after),
        }
        return self.updates.push("my_chat_member", update)

    def delete(self, chat_id: int, message_id: int) -> None:
        """A person deletes a message; bots hear nothing of it."""
        self.delete_message(self._message(self._chat_of(chat_id, None), message_id))

    def inject(self, update: JsonDict) -> int:
        """Any update as given; without `update_id` it gets the next one. An id used before is handed out again."""
        return self.updates.inject(update)

    # looking on

    def messages(self, chat_id: int, *, deleted: bool = False, history: bool = True) -> list[MessageView]:
        """A chat's messages in order, as they stand, with all they have said before; empty for an unknown chat."""
        chat = self.chats.get(chat_id)
        found = chat.messages.values() if chat else ()
        return [message.view(history=history) for message in found if deleted or not message.deleted]

    def message_view(self, chat_id: int, message_id: int) -> MessageView:
        """One message, deleted or not; KeyError when there never was one."""
        return self._message(self._chat_of(chat_id, None), message_id, deleted_too=True).view(history=True)

    def actions(self, chat_id: int) -> list[ActionView]:
        """The chat actions that the bot showed, oldest first."""
        chat = self.chats.get(chat_id)
        return list(chat.actions) if chat else []

    def drafts(self, chat_id: int) -> list[DraftView]:
        """The drafts that the bot showed, oldest first."""
        chat = self.chats.get(chat_id)
        return list(chat.drafts) if chat else []

    def draft_on_screen(self, chat_id: int) -> DraftView | None:
        """The draft that can be seen now: until 30 s pass or a message comes."""
        chat = self.chats.get(chat_id)
        draft = chat.draft if chat else None
        return draft if draft and time.monotonic() - draft.at < DRAFT_LIFE else None

    def callback(self, callback_id: str) -> CallbackView:
        """How a pressed button ended so far."""
        return self.callback_view(callback_id)

    def file_bytes(self, file_id: str) -> bytes:
        """The content of a file that either side sent; KeyError when it isn't there (any more)."""
        file = self.files.get(file_id)
        if file is None or file.data is None:
            raise KeyError(f"file {file_id}: not known, or its content was given up")
        return file.data

    def state(self) -> StateView:
        """The whole at a glance."""
        return StateView(
            version=self.journal.version,
            bot=self.bot,
            polling=self.updates.polling,
            pending=len(self.updates),
            calls=self.journal.calls_total,
            webhook_url=self.webhook.get("url", ""),
            chats=list(self.chats),
        )

    # parts

    def _speaker(self, user_id: int, *, private: bool) -> JsonDict:
        user = self.people.get(user_id) or self.declare_user(user_id, started=private)
        chat = self.chats[user_id]
        if private and chat.blocked:
            raise ValueError(f"user {user_id} has blocked the bot: unblock first")
        chat.started = chat.started or private
        return user

    def _chat_of(self, user_id: int, chat_id: int | None) -> Chat:
        wanted = user_id if chat_id is None else chat_id
        if wanted not in self.chats:
            raise KeyError(f"chat {wanted}: not known; declare it first")
        return self.chats[wanted]

    def _message(self, chat: Chat, message_id: int, *, deleted_too: bool = False) -> Message:
        message = chat.messages.get(message_id)
        if message is None or (message.deleted and not deleted_too):
            raise KeyError(f"message {message_id}: not in chat {chat.wire['id']}")
        return message

    def _content(
        self,
        text: str | None,
        entities: list[JsonDict] | None,
        *,
        document: str | None,
        photo: str | None,
        voice: str | None,
        duration: int,
    ) -> JsonDict:
        given = [file_id for file_id in (document, photo, voice) if file_id]
        if len(given) > 1:
            raise ValueError("a message holds one file: give document, photo or voice")
        if not given:
            text, found = _typed(text or "", entities, limit=MAX_TEXT)
            return {"text": text, **({"entities": found} if found else {})}
        file = self._file(given[0])
        fields: JsonDict
        if document:
            fields = {"document": document_wire(file)}
        elif photo:
            fields = {"photo": self.files.photo_sizes(file)}
        else:
            fields = {"voice": voice_wire(file, duration)}
        if text:
            caption, found = _typed(text, entities, limit=MAX_CAPTION)
            fields.update({"caption": caption, **({"caption_entities": found} if found else {})})
        return fields

    def _file(self, file_id: str) -> StoredFile:
        file = self.files.get(file_id)
        if file is None:
            raise KeyError(f"file {file_id}: not known; put_file gives an id")
        return file

    def _reply(self, chat: Chat, message_id: int, quote: str | None) -> JsonDict:
        message = self._message(chat, message_id)
        fields: JsonDict = {"reply_to_message": self.quoted(message)}
        if quote:
            position = (message.text() or "").find(quote)
            if position < 0:
                raise ValueError(f"quote {quote!r}: not in message {message_id}")
            before = (message.text() or "")[:position]
            fields["quote"] = {"text": quote, "position": utf16_length(before), "is_manual": True}
        return fields

    def _origin(self, forward_from: int | str | None) -> JsonDict | None:
        if forward_from is None:
            return None
        date = int(time.time()) - 60
        if isinstance(forward_from, str):
            return {"type": "hidden_user", "date": date, "sender_user_name": forward_from}
        sender = self.bot if forward_from == self.bot["id"] else self.people.get(forward_from)
        return {"type": "user", "date": date, "sender_user": sender or self.declare_user(forward_from, started=False)}

    def _membership(self, status: str) -> JsonDict:
        member: JsonDict = {"status": status, "user": self.bot}
        if status == "kicked":
            member["until_date"] = 0
        return member


def _typed(text: str, entities: list[JsonDict] | None, *, limit: int) -> tuple[str, list[JsonDict]]:
    """What an app sends for typed text: trimmed, within the limit, with commands and links marked."""
    if utf16_length(text) > limit:
        raise ValueError(f"text of {utf16_length(text)} UTF-16 units: an app sends at most {limit} in one message")
    if not text.strip():
        raise ValueError("empty text: an app sends no such message")
    if entities is not None:
        for entity in entities:
            part = utf16_slice(text, entity["offset"], entity["length"])
            if not part:
                raise ValueError(f"entity {entity}: covers nothing of the text")
        return text, [dict(entity) for entity in entities]
    text, _ = formatted(text, None)
    found: list[JsonDict] = []
    for kind, pattern in (("bot_command", _COMMAND), ("url", _URL)):
        for match in pattern.finditer(text):
            offset = utf16_length(text[: match.start()])
            found.append({"type": kind, "offset": offset, "length": utf16_length(match.group())})
    found.sort(key=_offset)
    return text, found


def _offset(entity: JsonDict) -> Any:
    return entity["offset"]


def _button_data(message: Message, index: int | None, label: str | None) -> str:
    rows = message.wire.get("reply_markup", {}).get("inline_keyboard", [])
    buttons = [button for row in rows for button in row]
    if index is not None and 0 <= index < len(buttons):
        wanted = buttons[index]
    else:
        wanted = next((button for button in buttons if label is not None and button["text"] == label), None)
    if wanted is None:
        labels = [button["text"] for button in buttons]
        raise ValueError(f"message {message.wire['message_id']} has no such button; it has {labels}")
    if "callback_data" not in wanted:
        raise ValueError(f"button {wanted['text']!r} sends nothing to the bot")
    return str(wanted["callback_data"])
