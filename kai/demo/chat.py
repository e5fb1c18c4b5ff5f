"""The terminal chat: lines become messages of a person at the Bot API stand-in, and what the bot does is shown.

`:1` presses button [1]; Ctrl-C says /stop while a turn runs; Ctrl-D ends. The chat is a Telegram app and nothing
more: it knows of the daemons only what their messages say.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kai.demo.botapi.server import BotApi
from kai.demo.botapi.views import Change
from kai.demo.editor import Editor
from kai.demo.screen import Face, Item, Terminal

_BUTTON = re.compile(r":([0-9]{1,4})")
PLACEHOLDER = "⏳"
NOTHING_RUNS = "nothing is running; Ctrl-D ends the demo"


class Chat:
    """One person's private chat with the bot, shown on a face."""

    def __init__(self, api: BotApi, user_id: int, face: Face) -> None:
        self.api, self.user_id, self.face = api, user_id, face
        self.items: dict[int, Item] = {}
        self.buttons: dict[int, tuple[int, str]] = {}
        self.over = asyncio.Event()
        self.seen = 0

    # ---- what the bot does ----

    async def follow(self) -> None:
        """Show what happens, until cancelled."""
        while True:
            self.catch_up()
            await self.api.journal.next(3600)

    def catch_up(self) -> None:
        """Show what has happened."""
        changes = self.api.changes(self.seen)
        self.seen = changes.version
        for change in changes.changes:
            self._apply(change)

    def _apply(self, change: Change) -> None:
        if change.kind == "callback" and change.data.get("text"):
            self.face.notice(str(change.data["text"]))
        if change.chat_id != self.user_id or change.message_id is None:
            return
        if change.kind in ("message", "edit"):
            self.items[change.message_id] = self._item(change.message_id, change.data)
        elif change.kind == "reaction" and change.message_id in self.items:
            self.items[change.message_id].reactions = list(change.data.get("reactions", ()))
        elif change.kind == "delete":
            self.items.pop(change.message_id, None)
        else:
            return
        self.face.show(self.items, change.message_id)

    def _item(self, message: int, data: dict[str, Any]) -> Item:
        rows = (data.get("reply_markup") or {}).get("inline_keyboard", [])
        numbers = iter(self._number(message, [b.get("callback_data", "") for row in rows for b in row]))
        files = [_file_name(data[kind]) for kind in ("document", "voice") if kind in data]
        return Item(
            id=message,
            by_bot=bool(data["by_bot"]),
            text=data.get("text") or "",
            entities=data.get("entities") or (),
            buttons=[[(next(numbers), b["text"]) for b in row] for row in rows],
            growing=grows(data.get("text"), data.get("reply_markup")),
            files=[*files, *(["photo"] if "photo" in data else [])],
        )

    def _number(self, message: int, wanted: list[str]) -> list[int]:
        """The numbers of a message's buttons: a button keeps its number for as long as it is there."""
        kept = {data: number for number, (where, data) in self.buttons.items() if where == message}
        self.buttons = {n: each for n, each in self.buttons.items() if each[0] != message or each[1] in wanted}
        numbers = []
        for data in wanted:
            number = kept.get(data) or next(n for n in range(1, len(self.buttons) + 2) if n not in self.buttons)
            self.buttons[number] = (message, data)
            numbers.append(number)
        return numbers

    # ---- what the person does ----

    @property
    def running(self) -> bool:
        """Whether a message grows."""
        return any(item.growing for item in self.items.values())

    def typed(self, line: str) -> None:
        """A finished line: a message, or a button's number."""
        if not line.strip():
            return
        button = _BUTTON.fullmatch(line.strip())
        try:
            if button is None:
                self.api.say(self.user_id, line)
            elif int(button[1]) in self.buttons:
                message, data = self.buttons[int(button[1])]
                self.api.press(self.user_id, message, data=data)
            else:
                self.face.notice(f"there is no button [{button[1]}]")
        except ValueError as error:
            self.face.notice(str(error))
        self.catch_up()

    def interrupt(self) -> bool:
        """Ctrl-C: stop what runs. False when nothing does."""
        if self.running:
            self.typed("/stop")
            return True
        return False


def grows(text: str | None, markup: dict[str, Any] | None) -> bool:
    """Whether a message of the bot is still being written: a mere placeholder, or one with a Stop button."""
    if text == PLACEHOLDER:
        return True
    rows = (markup or {}).get("inline_keyboard", [])
    return any(button.get("callback_data", "").startswith("stop:") for row in rows for button in row)


def _file_name(file: Any) -> str:
    return str(file.get("file_name", "voice note"))


def is_terminal() -> bool:
    """Whether a screen can be drawn on: both ends are a terminal, and not a dumb one."""
    return os.isatty(0) and os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def keyboard() -> Iterator[None]:
    """Keys come one by one and unseen, Ctrl-C and Ctrl-D as keys; afterwards the terminal is as before."""
    before = termios.tcgetattr(0)
    raw = termios.tcgetattr(0)
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
    termios.tcsetattr(0, termios.TCSADRAIN, raw)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def at_terminal(chat: Chat, face: Terminal, editor: Editor) -> None:
    """Read keys until Ctrl-D, or until `chat.over`."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        try:
            data = os.read(0, 4096)
        except OSError:
            data = b""
        if not data:
            chat.over.set()  # the terminal is gone
        for action, text in editor.feed(data):
            if action == "line":
                chat.typed(text)
            elif action == "end":
                chat.over.set()
            elif action == "clear":
                face.clear()
            elif not chat.interrupt():
                face.notice(NOTHING_RUNS)
        face.draw()

    with keyboard():
        loop.add_reader(0, readable)
        try:
            face.draw()
            await chat.over.wait()
        finally:
            loop.remove_reader(0)
            face.end()


async def by_lines(chat: Chat) -> None:
    """Read lines of standard input until it ends, or until `chat.over`."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        try:
            for line in sys.stdin or ():
                loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\n"))
            loop.call_soon_threadsafe(lines.put_nowait, None)
        except (RuntimeError, ValueError, OSError):
            return  # the chat is over, and its loop or standard input closed

    # a thread that dies with the process: a blocked read can't be taken back, and files can't be polled
    threading.Thread(target=read, daemon=True).start()
    over = asyncio.ensure_future(chat.over.wait())
    try:
        while not chat.over.is_set():
            line = asyncio.ensure_future(lines.get())
            await asyncio.wait({line, over}, return_when=asyncio.FIRST_COMPLETED)
            if not line.done() or line.result() is None:
                line.cancel()
                return
            chat.typed(line.result() or "")
    finally:
        over.cancel()
