"""The state behind the Bot API: people, chats, messages with their history, files, commands, callback queries."""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kai.demo.botapi.answers import ApiError, JsonDict, bad
from kai.demo.botapi.faults import Faults
from kai.demo.botapi.files import FileStore
from kai.demo.botapi.flood import FloodGate, FloodLimits
from kai.demo.botapi.journal import Journal
from kai.demo.botapi.updates import Updates
from kai.demo.botapi.views import ActionView, CallbackView, DraftView, MessageVersion, MessageView

DRAFT_LIFE = 30.0  # seconds a draft stays on the screen
_KEPT_NOTES = 1000  # chat actions and drafts per chat


@dataclass(slots=True)
class Message:
    """A message: its wire form now, and everything it has said."""

    wire: JsonDict
    by_bot: bool
    at: float
    versions: deque[MessageVersion]
    reactions: list[str] = field(default_factory=list)
    deleted: bool = False

    def content(self) -> tuple[Any, Any, Any]:
        """Text (or caption), entities and keyboard: what an edit compares."""
        return self.text(), self.entities(), self.wire.get("reply_markup")

    def text(self) -> str | None:
        """The text, or the caption of a file."""
        return self.wire.get("text", self.wire.get("caption"))

    def entities(self) -> list[JsonDict]:
        """The entities of `text`."""
        return list(self.wire.get("entities") or self.wire.get("caption_entities") or [])

    def version(self, at: float) -> MessageVersion:
        """What it says now, as an entry of its history."""
        return MessageVersion(at, self.text(), self.entities(), self.wire.get("reply_markup"))

    def view(self, *, history: bool) -> MessageView:
        """The message for whoever looks on."""
        return MessageView(
            chat_id=self.wire["chat"]["id"],
            message_id=self.wire["message_id"],
            sender_id=self.wire["from"]["id"],
            by_bot=self.by_bot,
            at=self.at,
            text=self.text(),
            entities=self.entities(),
            reply_markup=self.wire.get("reply_markup"),
            reactions=list(self.reactions),
            deleted=self.deleted,
            versions=list(self.versions) if history else [],
            wire=self.wire,
        )


@dataclass(slots=True)
class Chat:
    """A chat that the bot can see. `started`: the person has written to the bot, or counts as if."""

    wire: JsonDict
    started: bool
    blocked: bool = False
    messages: dict[int, Message] = field(default_factory=dict)
    actions: deque[ActionView] = field(default_factory=lambda: deque(maxlen=_KEPT_NOTES))
    drafts: deque[DraftView] = field(default_factory=lambda: deque(maxlen=_KEPT_NOTES))
    draft: DraftView | None = None  # what is on the screen
    topics: set[int] = field(default_factory=set)  # message_thread_id of those that there are

    @property
    def private(self) -> bool:
        """A chat with one person, not a group."""
        return bool(self.wire["type"] == "private")


@dataclass(slots=True)
class Callback:
    """A pressed button that waits for its answer."""

    chat_id: int
    user_id: int
    data: str
    at: float
    answered: bool = False
    text: str = ""
    show_alert: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept, so that memory stays flat over long runs."""

    calls: int = 100_000
    call_bytes: int = 64 << 20  # texts and answers in the log of calls
    changes: int = 20_000
    messages: int = 20_000  # per chat, deleted ones included
    versions: int = 1_000  # per message
    callbacks: int = 10_000
    file_bytes: int = 256 << 20


class World:
    """One bot and everything around it. Only for the event loop that runs it."""

    def __init__(
        self,
        *,
        token: str,
        username: str = "kai_demo_bot",
        first_name: str = "Kai",
        limits: FloodLimits | None = None,
        callback_timeout: float = 15.0,
        seed: int = 0,
        bounds: Bounds | None = None,
    ) -> None:
        number, colon, secret = token.partition(":")
        if not number.isdecimal() or not colon or not secret:
            raise ValueError("bot token: expected NUMBER:SECRET as BotFather gives it; check the token file")
        self.token = token
        self.bot: JsonDict = {
            "id": int(number),
            "is_bot": True,
            "first_name": first_name,
            "username": username,
        }
        self.callback_timeout = callback_timeout
        self.bounds = bounds or Bounds()
        self.journal = Journal(
            max_calls=self.bounds.calls, max_call_bytes=self.bounds.call_bytes, max_changes=self.bounds.changes
        )
        self.updates = Updates(first_id=100_000_000 + secrets.randbelow(1_000_000), wake=self.journal.wake)
        self.faults = Faults(seed=seed)
        self.flood = FloodGate(limits or FloodLimits())
        self.files = FileStore(capacity=self.bounds.file_bytes)
        self.people: dict[int, JsonDict] = {}
        self.chats: dict[int, Chat] = {}
        self.callbacks: dict[str, Callback] = {}
        self.commands: dict[tuple[str, str], list[JsonDict]] = {}
        self.webhook: JsonDict = {}
        self._last_message_id = 0

    # chats and messages, as the API methods need them

    def chat_for_sending(self, chat_id: str) -> Chat:
        """The chat of a call that puts something on the screen; ApiError when the bot may not."""
        chat = self.chat(chat_id)
        if not chat.started:
            raise ApiError(403, "Forbidden: bot can't initiate conversation with a user")
        if chat.blocked:
            raise ApiError(403, "Forbidden: bot was blocked by the user")
        return chat

    def chat(self, chat_id: str) -> Chat:
        """The chat of a call; ApiError 400 when there is none."""
        if not chat_id:
            raise bad("chat_id is empty")
        try:
            return self.chats[int(chat_id)]
        except (ValueError, KeyError):
            raise bad("chat not found") from None

    def message(self, chat: Chat, message_id: int, *, what: str) -> Message:
        """A message that is still there; ApiError 400 "`what` not found"."""
        message = chat.messages.get(message_id)
        if message is None or message.deleted:
            raise bad(f"{what} not found")
        return message

    def add_message(self, chat: Chat, sender: JsonDict, fields: JsonDict, *, date: int | None = None) -> Message:
        """Put a new message into a chat. `fields` is its content in wire form."""
        self._last_message_id += 1
        now = time.monotonic()
        wire: JsonDict = {
            "message_id": self._last_message_id,
            "from": sender,
            "chat": chat.wire,
            "date": int(time.time()) if date is None else date,
            **fields,
        }
        message = Message(wire, sender is self.bot, now, deque(maxlen=self.bounds.versions))
        message.versions.append(message.version(now))
        chat.messages[self._last_message_id] = message
        if len(chat.messages) > self.bounds.messages:
            del chat.messages[next(iter(chat.messages))]
        if message.by_bot:
            chat.draft = None
        self._note("message", message)
        return message

    def change_message(self, message: Message, fields: JsonDict) -> None:
        """Replace what a message says; None takes a field away."""
        wire = {**message.wire, "edit_date": int(time.time()), **fields}
        message.wire = {name: value for name, value in wire.items() if value is not None}
        message.versions.append(message.version(time.monotonic()))
        self._note("edit", message)

    def delete_message(self, message: Message) -> None:
        """Take a message off the screen; its history stays readable."""
        message.deleted = True
        self._note("delete", message)

    def quoted(self, message: Message) -> JsonDict:
        """A message as another one shows it that replies to it: without what it replied to itself."""
        return {name: value for name, value in message.wire.items() if name != "reply_to_message"}

    def _note(self, kind: str, message: Message) -> None:
        wire = message.wire
        data = {
            "by_bot": message.by_bot,
            "text": message.text(),
            "entities": message.entities(),
            "reply_markup": wire.get("reply_markup"),
        }
        for name in ("document", "photo", "voice"):
            if name in wire:
                data[name] = wire[name]
        self.journal.note(kind, chat_id=wire["chat"]["id"], message_id=wire["message_id"], data=data)

    # callback queries

    def add_callback(self, chat_id: int, user_id: int, data: str) -> str:
        """A button was pressed: its query's id."""
        callback_id = str(secrets.randbits(62) + (1 << 62))
        self.callbacks[callback_id] = Callback(chat_id, user_id, data, time.monotonic())
        if len(self.callbacks) > self.bounds.callbacks:
            del self.callbacks[next(iter(self.callbacks))]
        return callback_id

    def answer_callback(self, callback_id: str, text: str, *, show_alert: bool) -> None:
        """Answer a query: once, and in time."""
        callback = self.callbacks.get(callback_id)
        late = callback is None or time.monotonic() - callback.at > self.callback_timeout
        if callback is None or late or callback.answered:
            raise bad("query is too old and response timeout expired or query ID is invalid")
        callback.answered = True
        callback.text = text
        callback.show_alert = show_alert
        data = {"callback_id": callback_id, "text": text, "show_alert": show_alert}
        self.journal.note("callback", chat_id=callback.chat_id, data=data)

    def callback_view(self, callback_id: str) -> CallbackView:
        """How a query ended so far; KeyError for an unknown id."""
        callback = self.callbacks[callback_id]
        return CallbackView(
            callback_id, callback.user_id, callback.data, callback.answered, callback.text, callback.show_alert
        )
