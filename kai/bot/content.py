"""What a message holds besides its text: files, what it refers to, whom it is from. Stored in the inbox as JSON.

Everything here was written by strangers as often as not: names become one line, texts lose what can't be seen.
"""

from __future__ import annotations

import math
from datetime import UTC
from typing import Final, Literal

import msgspec
import telegram

from kai.bot.message import one_line
from kai.bot.spool import display_name
from kai.bot.text import clean

LONGEST_QUOTE: Final = 1500
LONGEST_NAME: Final = 120
LONGEST_REMINDER: Final = 4000
"""Characters of an interrupted message that its continuation quotes."""
BIGGEST_FILE: Final = 20 * 1024 * 1024
"""Bytes that Telegram gives to a bot."""
FileKind = Literal["photo", "document", "video", "audio", "voice", "animation", "video note"]


class FileRef(msgspec.Struct, omit_defaults=True):
    """A file at Telegram: `id` fetches it, and may be another one each time; `key` is always the same for a file.

    `size` is in bytes, 0 where Telegram doesn't say.
    """

    id: str
    kind: FileKind
    name: str = ""
    mime: str = ""
    size: int = 0
    key: str = ""


class Content(msgspec.Struct, omit_defaults=True):
    """`quote` is what the message answers, `quoted` who said it; `origin` whom it was forwarded from."""

    files: list[FileRef] = []
    quote: str = ""
    quoted: str = ""
    origin: str = ""

    def encode(self) -> str:
        """As it is stored: "" where there is nothing."""
        return "" if self == Content() else msgspec.json.encode(self).decode()


def decode(content: str) -> Content:
    return msgspec.json.decode(content, type=Content) if content else Content()


def keys(content: str) -> list[str]:
    """What a message's author can change of it besides the text. A quotation changes with the message it is from."""
    return [file.key for file in decode(content).files]


def read(message: telegram.Message) -> tuple[str, Content] | None:
    """A message's text and the rest of it; None for what says nothing to an agent."""
    text = message.text or message.caption or _in_words(message)
    file = _file(message)
    if not text and file is None:
        return None
    quoted, quote = _reference(message)
    content = Content(files=[file] if file else [], quote=quote, quoted=quoted, origin=_origin(message.forward_origin))
    return sound(text or ""), content


def too_big(content: Content) -> str:
    """Why a file can't be fetched, for the user; "" where it can, or where Telegram doesn't tell its size."""
    for file in content.files:
        if file.size > BIGGEST_FILE:
            size = f"{math.ceil(10 * file.size / (1 << 20)) / 10:g} MB"
            return (
                f"⚠ {file.name} has {size}, and Telegram gives files of up to {BIGGEST_FILE >> 20} MB to a bot. "
                "Nothing of this message was taken; copy the file to the host in another way and name its path."
            )
    return ""


def sound(text: str) -> str:
    """Half a surrogate pair is no character: neither the database nor a socket takes it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_service(message: telegram.Message) -> bool:
    """Whether it only tells of something that happened to the chat, such as a pinned message."""
    return any(getattr(message, name, None) for name in _SERVICE)


_SERVICE: Final = (
    "pinned_message", "message_auto_delete_timer_changed", "forum_topic_created", "forum_topic_edited",
    "forum_topic_closed", "forum_topic_reopened", "general_forum_topic_hidden", "general_forum_topic_unhidden",
    "write_access_allowed", "boost_added", "chat_background_set", "new_chat_title", "new_chat_photo",
    "delete_chat_photo", "users_shared", "chat_shared", "connected_website", "web_app_data",
    "proximity_alert_triggered", "successful_payment", "refunded_payment", "passport_data", "gift", "unique_gift",
    "paid_message_price_changed", "checklist_tasks_done", "checklist_tasks_added", "chat_owner_changed",
)  # fmt: skip


def _file(message: telegram.Message | telegram.ExternalReplyInfo) -> FileRef | None:
    if message.photo:
        best = max(message.photo, key=lambda each: each.width * each.height)
        return FileRef(best.file_id, "photo", "photo.jpg", "image/jpeg", best.file_size or 0, best.file_unique_id)
    kinds: tuple[tuple[FileKind, str], ...] = (
        ("animation", "animation.mp4"),  # before `document`: Telegram gives both
        ("document", "file"),
        ("video", "video.mp4"),
        ("audio", "audio.mp3"),
        ("voice", "voice.ogg"),
        ("video note", "video-note.mp4"),
    )
    for kind, name in kinds:
        file = getattr(message, kind.replace(" ", "_"))
        if file:
            given = getattr(file, "file_name", None)
            mime = _line(getattr(file, "mime_type", None) or "")
            shown = _bracketed(display_name(sound(given))) if given else name
            return FileRef(file.file_id, kind, shown, mime, file.file_size or 0, file.file_unique_id)
    return None


def _in_words(message: telegram.Message) -> str:
    """What has no text of its own and can be said in a line."""
    if message.sticker:
        return f"[Sticker {_line(message.sticker.emoji or '')}]".replace(" ]", "]")
    if message.venue:
        place = message.venue.location
        name = f"{_line(message.venue.title)}, {_line(message.venue.address)}"
        return f"[Place: {name} ({place.latitude}, {place.longitude})]"
    if message.location:
        return f"[Location: {message.location.latitude}, {message.location.longitude}]"
    if message.contact:
        person = f"{message.contact.first_name} {message.contact.last_name or ''}"
        return f"[Contact: {_line(person)}, {_line(message.contact.phone_number)}]"
    if message.poll:
        options = "; ".join(_line(option.text) for option in message.poll.options)
        return f"[Poll: {_line(message.poll.question)}: {options}]"
    if message.dice:
        return f"[{_line(message.dice.emoji)} {message.dice.value}]"
    return ""


def _reference(message: telegram.Message) -> tuple[str, str]:
    """Who said what this answers, and what it was."""
    before = message.reply_to_message
    quote = message.quote.text if message.quote else ""
    if before is not None and not is_service(before):
        ours = before.from_user is not None and before.from_user.is_bot
        said = quote or before.text or before.caption or _in_words(before)
        who = "Kai" if ours else "the user"
        if before.forward_origin:
            who = f"a message forwarded from {_origin(before.forward_origin)}"
        return who, _named(_file(before), said)
    if message.external_reply is not None:
        return _origin(message.external_reply.origin), _named(_file(message.external_reply), quote)
    return ("an earlier message" if quote else ""), _quote(quote)


def _named(file: FileRef | None, said: str) -> str:
    """What was said with a file, or without one."""
    return _quote(f"[{file.kind}: {file.name}] {said}".strip() if file else said)


def _quote(text: str) -> str:
    text = clean(sound(text)).strip()
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…"


def _origin(origin: telegram.MessageOrigin | None) -> str:
    """`Ada L., 2026-11-22 10:00 UTC`."""
    if origin is None:
        return ""
    name = "an unknown sender"
    if isinstance(origin, telegram.MessageOriginUser):
        name = origin.sender_user.full_name
    elif isinstance(origin, telegram.MessageOriginHiddenUser):
        name = origin.sender_user_name
    elif isinstance(origin, telegram.MessageOriginChat):
        name = origin.sender_chat.effective_name or name
    elif isinstance(origin, telegram.MessageOriginChannel):
        name = origin.chat.effective_name or name
    return f"{_line(name) or 'an unknown sender'}, {origin.date.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _line(text: str) -> str:
    """A foreign name within a line of ours: it can't end it, nor the brackets around it."""
    line = _bracketed(one_line(sound(text))).strip()
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"


def _bracketed(line: str) -> str:
    return line.replace("[", "(").replace("]", ")")


def words(text: str, content: Content) -> str:
    """A message as the agent reads it: where it comes from and what it answers stand in brackets before it."""
    before = []
    if content.origin:
        before.append(f"[Forwarded from {content.origin}]")
    if content.quote:
        quoted = "\n".join(f"> {line}" for line in content.quote.splitlines())
        before.append(f"[In reply to {content.quoted or 'an earlier message'}:]\n{quoted}")
    return "\n".join([*before, text] if text else before)


def summary(text: str, content: Content) -> str:
    """A message in words alone: its files are named."""
    files = "".join(f"\n[{file.kind}: {file.name}]" for file in content.files)
    return (words(text, content) + files).strip()


def continuation(turn: str, text: str) -> str:
    """The words of a turn that goes on where another one was cut off, whose words were `text`."""
    if len(text) > LONGEST_REMINDER:
        text = text[:LONGEST_REMINDER] + "…"
    quoted = "\n".join(f"> {line}" for line in text.splitlines()) or "> (it is forgotten)"
    return (
        f"[Kai] Turn {turn} was cut off by the end of a process before you had answered; what you had done by then "
        "is done. Look where it stands, go on from there, repeat nothing that has an effect, and answer. "
        f"The message was:\n{quoted}"
    )
