"""What a running turn looks like in the chat: the text so far, one line for what the agent does, a Stop button."""

from __future__ import annotations

import time

from kai.bot.markdown import Text, length, render_partial
from kai.bot.message import Body, bodies, body, plain, stop_button
from kai.bot.split import split
from kai.bot.tables import InboxRow
from kai.interfaces import Event

SHOWN = 3500
"""Characters of the end of a growing text that are shown; the rest comes with the final answer."""
LONG_WORK = 10.0
"""Seconds after which the elapsed time is shown."""


class View:
    """Collects a turn's events."""

    def __init__(self, row: InboxRow) -> None:
        self.row = row
        self.began = time.monotonic()
        self.text = ""
        self.tool = ""
        self.trouble = ""

    def apply(self, event: Event) -> None:
        self.trouble = ""
        if event.kind == "text":
            self.text = self.text[: event.offset] + event.text
        elif event.kind == "tool":
            self.tool = f"⚙ {event.tool}: {event.summary}".removesuffix(": ") if event.running else ""

    def growing(self) -> Body:
        """The message as it stands now, with its Stop button."""
        text = self.text if len(self.text) <= SHOWN else "…\n\n" + self.text[-SHOWN:].partition("\n")[2]
        shown = split(render_partial(text))[-1:] or [Text("", ())]
        status = self._status()
        room = 4096 - length(status) - 2
        if length(shown[0].text) > room:
            shown = split(shown[0], room)[-1:]
        joined = f"{shown[0].text}\n\n{status}" if shown[0].text else status
        return body(Text(joined, shown[0].entities), [stop_button(self.row.turn)])

    def _status(self) -> str:
        elapsed = time.monotonic() - self.began
        clock = f" · {int(elapsed) // 60}:{int(elapsed) % 60:02d}" if elapsed >= LONG_WORK else ""
        doing = self.trouble or self.tool or "⏳"
        return (doing if len(doing) <= 200 else doing[:199] + "…") + clock

    def final(self, done: Event) -> list[Body]:
        """The answer. An error is added under what was shown; it never replaces it."""
        notes = {"ok": "", "failed": f"⚠ {done.error}", "interrupted": f"⏹ Stopped. {done.error}".strip()}
        note = notes.get(done.outcome, "")
        if done.outcome == "ok" and done.error:
            note = f"⚠ {done.error}"
        text = done.text or self.text  # a supervisor that was cut off gives none; what was shown stays
        messages = bodies(text) if text.strip() else []
        if not messages:
            return [plain(note or "(The agent gave no text.)")]
        if note:
            last = messages[-1]
            if length(last.text) + length(note) + 2 <= 4096:
                messages[-1] = Body(f"{last.text}\n\n{note}", last.entities)
            else:
                messages.append(plain(note))
        return messages
