"""/models, /model and /settings: what is in force, where it comes from, and the user's own choice of it."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import get_args
from zoneinfo import ZoneInfo

import msgspec

from kai.bot import picker
from kai.bot.invocation import Invocation, Misused
from kai.bot.message import Body, Button, Buttons, Code, compose
from kai.interfaces import Model, ModelList, Models, Set, Setting, Settings, SettingsInForce, Streaming

RESET = "reset"
CHOSEN, CHOSEN_HERE = "your choice", "your choice for this workspace"
MOST_BUTTONS = 24
START = 90.0
"""Seconds that an agent may take to start and tell its models."""
UNITS = {"budget": " USD", "timeout": " s", "max_turn": " s", "tool_timeout": " s"}
NOTHING = {"model": "the agent's own default"}
Pieces = list[str | Code]


async def model(asked: Invocation) -> list[Body]:
    """/model NAME, /model reset; without a name, as /models: the list."""
    name = asked.arguments
    if not name:
        return _list(await asked.ask(Models(), timeout=START))
    if len(name.split()) > 1:
        raise Misused("A model's name is one word.")
    value = "" if name == RESET else name
    after = await asked.ask(Set(field="model", value=value))
    return compose(*outcome(after, "model", value), " The session goes on.")


def _list(found: ModelList) -> list[Body]:
    pieces: Pieces = ["Model: ", *_value("model", found.current), f" ({found.source})\n"]
    buttons: list[Button] = []
    unlisted = 0
    for each in found.models:
        current = each.name == (found.current or "default")
        made = picker.button(each.title or each.name, f"/model {each.name}", current=current)
        if made and len(each.name.split()) == 1 and each.name != RESET and len(buttons) < MOST_BUTTONS:
            buttons.append(made)
        else:
            unlisted += 1
        pieces += _described(each)
    if not found.models:
        pieces.append("\nThe agent names none; /model NAME takes what it knows.")
    elif unlisted:
        pieces.append("\n\nThose without a button: /model NAME")
    laid = picker.rows(buttons)
    if found.source == CHOSEN and (back := picker.button("↩ take my choice back", f"/model {RESET}")):
        laid.append(back)
    return compose(*pieces, buttons=laid)


def _described(each: Model) -> Pieces:
    title = f" {each.title}" if each.title and each.title != each.name else ""
    return ["\n", Code(each.name), f"{title}{': ' if each.description else ''}{each.description}"]


async def settings(asked: Invocation) -> list[Body]:
    """/settings, /settings FIELD, /settings FIELD VALUE, /settings reset [FIELD]."""
    field, value = two(asked.arguments)
    field = field.lower()
    if field == RESET:
        if len(value.split()) > 1:
            raise Misused("One field can be reset, or all of them.")
        after = await _set(asked, value.lower(), "")
        if not value:
            return compose("Your choices are taken back.\n\n", *_table(after), buttons=_buttons(after.settings))
        return compose(*outcome(after, value.lower(), ""))
    if value:
        return compose(*outcome(await _set(asked, field, value), field, value))
    found = await asked.ask(Settings())
    if not field:
        return compose(*_table(found), buttons=_buttons(found.settings))
    one = setting(found, field)
    if one is None:
        known = ", ".join(each.field for each in found.settings)
        raise Misused(f"There is no setting of that name. There are: {known}.")
    hint = f"\n\nA choice of yours: /settings {field} VALUE"
    return compose(*line(one, found.ceiling_usd), hint, buttons=_buttons([one]))


async def _set(asked: Invocation, field: str, value: str) -> SettingsInForce:
    """Choose. The next turn may begin before its supervisor is asked anything, and is to know how it is shown."""
    after = await asked.ask(Set(field=field, value=value))
    streaming = setting(after, "streaming")
    if asked.lane.journal and streaming and streaming.value in get_args(Streaming):
        asked.lane.journal = msgspec.structs.replace(asked.lane.journal, streaming=streaming.value)
    return after


def two(arguments: str) -> tuple[str, str]:
    """The first word, and what follows it."""
    first, *rest = arguments.split(maxsplit=1) or [""]
    return first, "".join(rest).strip()


def _table(found: SettingsInForce) -> Pieces:
    pieces: Pieces = ["Settings in the workspace ", Code(found.workspace), "\n"]
    for each in found.settings:
        pieces += ["\n", *line(each, found.ceiling_usd)]
    return [*pieces, "\n\nChange one: /settings FIELD VALUE. Take a choice back: /settings reset FIELD"]


def _buttons(found: list[Setting]) -> Buttons:
    """The values of fields that have few; a field that allows nothing but what it is has no button."""
    laid: Buttons = []
    for each in found:
        made = [
            picker.button(f"{each.field}: {choice}", f"/settings {each.field} {choice}", current=choice == each.value)
            for choice in each.choices
        ]
        if [each.value] != each.choices:
            laid += picker.rows(button for button in made if button)
    return laid


def setting(found: SettingsInForce, field: str) -> Setting | None:
    return next((each for each in found.settings if each.field == field), None)


def line(one: Setting, ceiling: float = 0.0) -> Pieces:
    """`budget: 5.0 USD (your choice, at most 20 USD)`."""
    more = ""
    if one.field == "budget" and ceiling:
        more = f", at most {ceiling:g} USD"
    elif one.field == "timezone":
        more = f", now {datetime.now(zone(one.value)):%H:%M}"
    return [f"{one.field}: ", *_value(one.field, one.value), f" ({one.source}{more})"]


def _value(field: str, value: str) -> Pieces:
    if not value:
        return [NOTHING.get(field, "none")]
    unit = UNITS.get(field, "") if value.replace(".", "", 1).isdigit() else ""
    return [Code(value), unit]


def zone(name: str) -> tzinfo:
    """A time zone by its IANA name; the host's where there is none of that name."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return datetime.now(UTC).astimezone().tzinfo or UTC


def outcome(after: SettingsInForce, field: str, value: str, *, here: bool = False) -> Pieces:
    """What a choice has come to; it may be that something else goes first in this workspace."""
    one = setting(after, field)
    if one is None:
        return [f"{field}: noted."]
    if value and one.source != (CHOSEN_HERE if here else CHOSEN):
        return [
            "Your choice is noted. In the workspace ", Code(after.workspace), f", {one.source} goes first: ",
            *line(one, after.ceiling_usd), ".",
        ]  # fmt: skip
    said = "" if value else "Your choice is taken back. "
    return [said, *line(one, after.ceiling_usd), ", from the next message on."]
