"""What the stand-in shows to whoever drives it: one set of types for the in-process door and for `/control`.

Times named `at`, `answered`, `queued` are seconds of the machine's monotonic clock (time.monotonic): comparable
between processes of one boot.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kai.demo.botapi.answers import JsonDict

FaultKind = Literal["delay", "hold", "drop", "lose", "status", "flood", "conflict", "unauthorized", "refuse"]


class Said(msgspec.Struct, frozen=True):
    """A message (or an edit) of a person. `update_id` is None where the bot didn't ask for such updates."""

    message_id: int
    update_id: int | None


class Pressed(msgspec.Struct, frozen=True):
    """A button that a person pressed."""

    callback_id: str
    update_id: int | None


class CallbackView(msgspec.Struct, frozen=True):
    """A callback query: whether the bot answered it in time, and with what."""

    callback_id: str
    user_id: int
    data: str
    answered: bool
    text: str
    show_alert: bool


class MessageVersion(msgspec.Struct, frozen=True):
    """What a message said from `at` on."""

    at: float
    text: str | None
    entities: list[JsonDict]
    reply_markup: JsonDict | None


class MessageView(msgspec.Struct, frozen=True):
    """A message as it stands. `versions` begins with the original and ends with the current state.

    `text` and `entities` are the caption's for files. `wire` is the message as the Bot API shows it.
    """

    chat_id: int
    message_id: int
    sender_id: int
    by_bot: bool
    at: float
    text: str | None
    entities: list[JsonDict]
    reply_markup: JsonDict | None
    reactions: list[str]
    deleted: bool
    versions: list[MessageVersion]
    wire: JsonDict

    @property
    def buttons(self) -> list[str]:
        """The labels of the inline keyboard, row by row in one list: `press` takes an index into it."""
        rows = (self.reply_markup or {}).get("inline_keyboard", [])
        return [button["text"] for row in rows for button in row]


class ActionView(msgspec.Struct, frozen=True):
    """One sendChatAction."""

    chat_id: int
    action: str
    at: float


class DraftView(msgspec.Struct, frozen=True):
    """One sendMessageDraft."""

    chat_id: int
    draft_id: int
    text: str
    entities: list[JsonDict]
    at: float


class CallView(msgspec.Struct, frozen=True):
    """One API call. `status` is 0 while it waits, and when the connection was dropped before it acted.

    `lost` says that no answer reached the caller; `fault` names the faults that applied. Files appear among the
    parameters as {"name", "mime", "size"}.
    """

    seq: int
    method: str
    params: JsonDict
    at: float
    answered: float | None
    status: int
    answer: JsonDict | None
    lost: bool
    fault: str


class UpdateView(msgspec.Struct, frozen=True):
    """An update that the bot hasn't acknowledged. `handed_out` counts how often it was given."""

    update_id: int
    queued: float
    handed_out: int
    update: JsonDict


class Change(msgspec.Struct, frozen=True):
    """Something happened: `kind` is message, edit, delete, action, draft, reaction, callback, commands or block."""

    version: int
    kind: str
    at: float
    chat_id: int | None
    message_id: int | None
    data: JsonDict


class Changes(msgspec.Struct, frozen=True):
    """Everything after a version. `missed` says that older changes are no longer kept."""

    version: int
    missed: bool
    changes: list[Change]


class StateView(msgspec.Struct, frozen=True):
    """The stand-in at a glance. `polling` says that a getUpdates waits right now."""

    version: int
    bot: JsonDict
    polling: bool
    pending: int
    calls: int
    webhook_url: str
    chats: list[int]
