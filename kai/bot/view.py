"""What a running turn looks like in the chat: the text so far, what the agent does now and has done, a Stop button."""

from __future__ import annotations

import dataclasses
import time

from kai.bot import cut
from kai.bot.markdown import Text, length, render_partial
from kai.bot.message import Body, bodies, body, noted, plain, stop_button
from kai.bot.split import LIMIT, split
from kai.bot.tables import InboxRow
from kai.bot.text import clean
from kai.bot.tools import DONE, clock, counts_line, running_line, shorten
from kai.interfaces import Event, Ran

SHOWN = 3500
"""Characters of the end of a growing text that are shown; the rest comes with the final answer."""
LONG_WORK = 10.0
"""Seconds after which the elapsed time of a turn is shown."""
LONG_TURN = 60.0
"""Seconds of work after which the answer comes as a new message: an edit doesn't notify (S3)."""
LONGEST_TROUBLE = 300
FETCHING = "📎 fetching files…"
ASKS = "❓ waits for your approval"
SIGNS = {"ok": DONE, "failed": "⚠ ", "interrupted": "⏹ "}


class View:
    """Collects a turn's events. Those that are replayed after a break give the picture that was there before it."""

    def __init__(self, row: InboxRow) -> None:
        self.row = row
        self.began = time.time()
        self.text = ""
        self.tool: Event | None = None
        self.ran: list[Ran] = []
        self.questions: set[str] = set()
        self.trouble = ""
        self.fetching = False

    def apply(self, event: Event) -> None:
        self.trouble = ""
        self.fetching = False
        if event.kind == "started":
            self.began = event.since or self.began
        elif event.kind == "text":
            self.text = self.text[: event.offset] + event.text
        elif event.kind == "tool":
            self.tool, self.ran = event if event.running else None, event.ran
        elif event.kind == "approval" and event.running:
            self.questions.add(event.approval)
        elif event.kind == "approval":
            self.questions.discard(event.approval)

    @property
    def elapsed(self) -> float:
        """Seconds since the turn began."""
        return time.time() - self.began

    def growing(self) -> Body:
        """The message as it stands now, with its Stop button."""
        text = self.text if len(self.text) <= SHOWN else "…\n\n" + self.text[-SHOWN:].partition("\n")[2]
        shown = split(render_partial(text))[-1:] or [Text("", ())]
        status = self._status()
        room = LIMIT - length(status.text) - 2
        if length(shown[0].text) > room:
            shown = split(shown[0], room)[-1:]
        return body(_below(shown[0], status), [stop_button(self.row.turn)])

    def _status(self) -> Text:
        """What happens now, and below it what has been done."""
        now, done = self._now(), counts_line(self.ran)
        return Text(f"{now.text}\n{done}" if done else now.text, now.entities)

    def _now(self) -> Text:
        if self.trouble:
            return Text(shorten(self.trouble, LONGEST_TROUBLE))
        if self.fetching:
            return Text(FETCHING)
        if self.questions:
            return Text(ASKS)
        if self.tool:
            return running_line(self.tool.tool, self.tool.summary, time.time() - (self.tool.since or time.time()))
        return Text(f"⏳ · {clock(self.elapsed)}" if self.elapsed >= LONG_WORK else "⏳")

    def final(self, done: Event) -> list[Body]:
        """The answer. An error is added under what was shown; it never replaces it."""
        was_cut = done.outcome == "interrupted" and done.reason == "cut"
        # What is stored of a turn that was cut off may be a second older than what was shown.
        text = max(done.text, self.text, key=len) if was_cut else done.text or self.text
        note = clean(_note(done))
        messages = bodies(text) if text.strip() else []
        if was_cut:
            return cut.asking(messages, note, self.row.turn)
        if not messages:
            return [plain(note or "(The agent gave no text.)")]
        return noted(messages, note) if note else messages

    def summary(self, done: Event) -> Body | None:
        """What the growing message becomes where the answer is a new one; None where the answer goes into it."""
        self.began = done.since or self.began
        if self.elapsed <= LONG_TURN:
            return None
        counts = counts_line(self.ran).removeprefix(DONE)
        return plain(f"{SIGNS.get(done.outcome, DONE)}{clock(self.elapsed)}{f' · {counts}' if counts else ''}")


def _note(done: Event) -> str:
    """What is to be said of how a turn ended, in a line or two."""
    if done.outcome == "interrupted":
        if done.reason == "cut":
            return f"⚠ This turn was cut off: {done.error}"
        return f"⏹ Stopped. {done.error}".strip()
    return f"⚠ {done.error}" if done.error or done.outcome == "failed" else ""


def _below(text: Text, status: Text) -> Text:
    """A status under a blank line."""
    if not text.text:
        return status
    start = length(text.text) + 2
    moved = tuple(dataclasses.replace(entity, offset=entity.offset + start) for entity in status.entities)
    return Text(f"{text.text}\n\n{status.text}", text.entities + moved)
