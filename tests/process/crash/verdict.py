"""What became of everything that was said, judged from outside: the chats, the agents' own file of runs, the queue.

Each prompt has a tag. `runs` is the agents' file, one tag a line. An answer is known by its marks in the chat. Who has
none must have been told so, in a message of his chat. The bot's database is read when all is over, to see that nothing
was left there, and which message was meant for whom.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kai.demo.botapi.server import BotApi
from kai.demo.botapi.views import MessageView

from .agent import CONTINUED

MARK = re.compile(r"\bans-(\w+?)-(\d+)\.")
TOLD = re.compile(r"[⏹⚠▶✗]|dropped", re.IGNORECASE)
"""What is below an answer that did not come to its end, or stands in place of one."""
NOTE = "👀"
UNFINISHED_INBOX = {"received", "queued", "running", "answered"}
UNFINISHED_OUTBOX = {"stored", "sending"}
Row = dict[str, Any]


@dataclass
class Prompt:
    """A message for the agent: who said it, and how many marks its answer has."""

    tag: str
    user: int
    update: int
    message: int
    text: str
    marks: int = 1


@dataclass
class Command:
    """A command of the chat: it is answered, in doubt twice."""

    user: int
    update: int
    text: str


@dataclass
class Press:
    """A button that was pressed: Continue or Drop of a prompt that was cut off, or Show again of an outbox row."""

    user: int
    update: int
    data: str
    prompt: Prompt | None = None

    @property
    def row(self) -> int:
        """The outbox row that is to be shown again, 0 for other buttons."""
        return int(self.data.removeprefix("again:")) if self.data.startswith("again:") else 0


@dataclass
class Delivery:
    """What another unit asked the bot to say; `mark` is in it."""

    key: str
    user: int
    mark: str


@dataclass
class Said:
    """All that was said in a sweep."""

    prompts: list[Prompt] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    presses: list[Press] = field(default_factory=list)

    @property
    def updates(self) -> int:
        return len(self.prompts) + len(self.commands) + len(self.presses)


@dataclass
class Verdict:
    """Faults, by kind; and what is no fault, but was in doubt and shown as such."""

    lost: list[str] = field(default_factory=list)
    run_twice: list[str] = field(default_factory=list)
    answered_twice: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    """Sends of which nobody can know: what Telegram has of each, and what the user was told."""
    answered: int = 0
    told: int = 0
    continued: int = 0
    shown_again: int = 0
    placeholders_twice: int = 0
    commands_twice: int = 0
    """What may stand in the chat twice, and does."""

    @property
    def faults(self) -> list[str]:
        kinds = ("lost", "run_twice", "answered_twice", "disorder", "unfinished")
        return [f"{kind}: {what}" for kind in kinds for what in getattr(self, kind)]


class Queue:
    """The rows of a bot that has ended, by the updates and rows that they belong to."""

    def __init__(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            db.row_factory = sqlite3.Row
            self.inbox: list[Row] = [dict(row) for row in db.execute("SELECT * FROM inbox ORDER BY id")]
            self.outbox: list[Row] = [dict(row) for row in db.execute("SELECT * FROM outbox ORDER BY id")]
        self.by_id = {row["id"]: row for row in self.inbox}
        self.by_update = {row["update_id"]: row for row in self.inbox}
        self.outgoing: dict[int | None, list[Row]] = defaultdict(list)
        for row in self.outbox:
            self.outgoing[row["inbox"]].append(row)

    def of(self, update: int) -> Row | None:
        """The row of an update; for a part of another's turn, that one."""
        row = self.by_update.get(update)
        return self.by_id.get(row["leader"], row) if row and row.get("leader") else row


class Judge:
    """Looks at one sweep."""

    def __init__(self, api: BotApi, queue: Queue, runs: Path, said: Said) -> None:
        self.queue, self.said, self.verdict = queue, said, Verdict()
        everything: list[Prompt | Command | Delivery] = [*said.prompts, *said.commands, *said.deliveries]
        users = {each.user for each in everything}
        self.shown: dict[int, dict[int, MessageView]] = {
            user: {m.message_id: m for m in api.messages(user, history=False) if m.by_bot} for user in users
        }
        self.again = Counter(press.row for press in said.presses if press.row)
        self.ran = runs.read_text().split() if runs.exists() else []
        self.files = {
            message.message_id: api.file_bytes(message.wire["document"]["file_id"]).decode("utf-8", "replace")
            for chat in self.shown.values()
            for message in chat.values()
            if "document" in message.wire
        }
        self.marks: dict[tuple[str, int], list[int]] = defaultdict(list)
        for chat in self.shown.values():
            for number, message in chat.items():
                for tag, mark in MARK.findall(message.text or ""):
                    self.marks[tag, int(mark)].append(number)

    def judge(self) -> Verdict:
        counts = Counter(self.ran)
        tags = {prompt.tag for prompt in self.said.prompts}
        for tag, count in counts.items():
            if count > 1 and tag in tags:
                self.verdict.run_twice.append(f"{tag} ran {count} times")
        for prompt in self.said.prompts:
            self._prompt(prompt, counts[prompt.tag])
            self._continuation(prompt, counts)
        for command in self.said.commands:
            self._command(command)
        for delivery in self.said.deliveries:
            self._delivery(delivery)
        self._order()
        self._unfinished()
        return self.verdict

    # ---- one message ----

    def _prompt(self, prompt: Prompt, runs: int) -> None:
        verdict, row = self.verdict, self.queue.of(prompt.update)
        if row is None:
            verdict.lost.append(f"{prompt.tag} (update {prompt.update}) is not in the inbox")
            return
        what = f"{prompt.tag} (update {prompt.update}, {row['state']})"
        found = [self.marks.get((prompt.tag, mark), []) for mark in range(prompt.marks)]
        rows = self.queue.outgoing[row["id"]]
        asked = Counter(mark for one in rows for mark in self._marks(prompt, one) for _ in range(self.again[one["id"]]))
        self.verdict.shown_again += bool(asked)
        twice = [mark for mark, messages in enumerate(found) if len(messages) > 1 + asked[mark]]
        if twice:
            verdict.answered_twice.append(f"{what}: marks {twice} are in messages {[found[mark] for mark in twice]}")
        missing = [mark for mark, messages in enumerate(found) if not messages]
        doubtful = [one for one in rows if one["state"] == "unknown"]
        if doubtful:
            self._doubt(prompt, what, doubtful, missing)
        if not missing or self._in_a_file(prompt, rows, missing):
            verdict.answered += 1
            if runs == 0:
                verdict.lost.append(f"{what} is answered, but no agent ran it")
        elif self._is_told(prompt, row, rows):
            verdict.told += 1
        elif not doubtful:
            have = [(one["kind"], one["state"], one["message"]) for one in rows]
            verdict.lost.append(f"{what}: marks {missing} are missing, and nothing was told; ran {runs}; outbox {have}")

    def _in_a_file(self, prompt: Prompt, rows: list[Row], missing: list[int]) -> bool:
        """Whether a document holds what is missing."""
        whole = "".join(self.files.get(one["message"], "") for one in rows)
        return all(f"ans-{prompt.tag}-{mark}." in whole for mark in missing)

    def _doubt(self, prompt: Prompt, what: str, rows: list[Row], missing: list[int]) -> None:
        """Messages of an answer that Telegram may or may not have: the user is to know that."""
        told = self._told_of_doubt(prompt.user, rows)
        for one in rows:
            arrived = "arrived" if not self._marks(prompt, one) & set(missing) else "did not arrive"
            self.verdict.ambiguous.append(
                f"{what}: {one['kind']} {one['id']} {arrived}, the user was {told or 'not told'}"
            )
        if not told and missing:
            self.verdict.lost.append(f"{what}: marks {missing} are in messages that are unknown, and nothing was told")

    def _marks(self, prompt: Prompt, row: Row) -> set[int]:
        """The marks of an answer that a message holds."""
        return {int(mark) for tag, mark in _marks(row) if tag == prompt.tag}

    def _continuation(self, prompt: Prompt, counts: Counter[str]) -> None:
        """However often Continue and Drop were pressed: one of them counted, and the turn that goes on ran once."""
        pressed = [press for press in self.said.presses if press.prompt is prompt]
        begun = [press for press in pressed if (self.queue.by_update.get(press.update) or {}).get("kind") == "turn"]
        tag = f"{prompt.tag}{CONTINUED}"
        if counts[tag] > len(begun) or len(begun) > 1:
            self.verdict.run_twice.append(f"{prompt.tag} was continued {len(begun)} times and ran {counts[tag]} times")
        for press in pressed:
            if press.update not in self.queue.by_update:
                self.verdict.lost.append(f"{press.data} (update {press.update}) is not in the inbox")
        for press in begun:
            self.verdict.continued += 1
            goes_on = Prompt(tag, prompt.user, press.update, prompt.message, prompt.text, prompt.marks)
            self._prompt(goes_on, counts[tag])

    def _told_of_doubt(self, user: int, rows: list[Row]) -> str:
        """What a chat says of such rows: any message with a button that names one of them, or that speaks of it."""
        names = {str(one["id"]) for one in rows} | {str(one["inbox"]) for one in rows}
        for message in self.shown[user].values():
            for line in (message.reply_markup or {}).get("inline_keyboard", []):
                for button in line:
                    if "show" in button["text"].lower() and names & set(re.split(r"\D+", button["callback_data"])):
                        return f"shown [{button['text']}]"
        return ""

    def _is_told(self, prompt: Prompt, row: Row, rows: list[Row]) -> bool:
        """Whether a message of the chat that is this turn's, or a /stop's, says that there is no answer."""
        for one in rows:
            message = self.shown[prompt.user].get(one["message"] or 0)
            if message and TOLD.search(message.text or "") and "⏹ Stop" not in message.buttons:
                return True
        return row["state"] == "dropped" and self._dropped(prompt.user, row)

    def _dropped(self, user: int, row: Row) -> bool:
        """Whether the answer to a later /stop says that something was dropped."""
        later = [one for one in self.queue.inbox if one["user"] == row["user"] and one["id"] > row["id"]]
        return any("dropped" in text.lower() for one in later for text in self._replies(user, one))

    def _replies(self, user: int, row: Row) -> list[str]:
        found = (self.shown[user].get(one["message"] or 0) for one in self.queue.outgoing[row["id"]])
        return [message.text or "" for message in found if message]

    def _command(self, command: Command) -> None:
        row = self.queue.of(command.update)
        if row is None:
            self.verdict.lost.append(f"{command.text} (update {command.update}) is not in the inbox")
            return
        if row["state"] == "dropped" and self._dropped(command.user, row):
            return
        if not self._replies(command.user, row):
            rows = self.queue.outgoing[row["id"]]
            doubtful = [one for one in rows if one["state"] == "unknown"]
            if doubtful and (told := self._told_of_doubt(command.user, doubtful)):
                self.verdict.ambiguous.append(f"{command.text} (update {command.update}): the user was {told}")
                return
            have = [(one["kind"], one["state"], one["message"]) for one in rows]
            self.verdict.lost.append(f"{command.text} (update {command.update}, {row['state']}) has no answer: {have}")

    def _delivery(self, delivery: Delivery) -> None:
        found = [m.message_id for m in self.shown[delivery.user].values() if delivery.mark in (m.text or "")]
        rows = [one for one in self.queue.outbox if one["key"].startswith(f"{delivery.key}/")]
        doubtful = [one for one in rows if one["state"] == "unknown"]
        if len(found) > 1 + sum(self.again[one["id"]] for one in rows):
            self.verdict.answered_twice.append(f"delivery {delivery.key} is in messages {found}")
        if doubtful:
            told = self._told_of_doubt(delivery.user, doubtful)
            arrived = "arrived" if found else "did not arrive"
            self.verdict.ambiguous.append(f"delivery {delivery.key} {arrived}, the user was {told or 'not told'}")
        if not found and not (doubtful and told):
            self.verdict.lost.append(f"delivery {delivery.key}: {[one['state'] for one in rows]}, and nothing was told")

    # ---- all of them ----

    def _order(self) -> None:
        """Runs and answers of each user are in the order in which he wrote."""
        again = {tag for row in self.queue.outbox if self.again[row["id"]] for tag, _ in _marks(row)}
        for user in self.shown:
            mine = [prompt.tag for prompt in self.said.prompts if prompt.user == user]
            place = {tag: number for number, tag in enumerate(mine)}
            ran = [place[tag] for tag in self.ran if tag in place]
            if ran != sorted(ran):
                at = next(n for n in range(1, len(ran)) if ran[n] < ran[n - 1])
                self.verdict.disorder.append(f"user {user}: {mine[ran[at]]} ran after {mine[ran[at - 1]]}")
            answers = [(self.marks[tag, 0][0], tag) for tag in mine if self.marks.get((tag, 0)) and tag not in again]
            for before, after in itertools.pairwise(answers):
                if after[0] <= before[0]:
                    self.verdict.disorder.append(f"user {user}: {after[1]} is shown before {before[1]}")

    def _unfinished(self) -> None:
        for row in self.queue.inbox:
            if row["state"] in UNFINISHED_INBOX:
                self.verdict.unfinished.append(f"inbox {row['id']} ({row['text'][:20]}) is {row['state']}")
        for row in self.queue.outbox:
            if row["state"] in UNFINISHED_OUTBOX:
                self.verdict.unfinished.append(f"outbox {row['id']} ({row['kind']}) is {row['state']}")
        known = {row["message"] for row in self.queue.outbox}
        for chat in self.shown.values():
            for number, message in chat.items():
                if number not in known and not (message.text or "").startswith(NOTE):
                    if "⏹ Stop" in message.buttons:
                        self.verdict.placeholders_twice += 1
                    else:
                        self.verdict.commands_twice += 1


def _marks(row: Row) -> list[tuple[str, str]]:
    """Tags and marks in the text of a row of the outbox."""
    return MARK.findall(json.loads(row["body"])["text"])
