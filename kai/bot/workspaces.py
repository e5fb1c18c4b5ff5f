"""/workspace and /workspaces: where the agent works, and this place's own settings."""

from __future__ import annotations

from typing import NamedTuple

from kai.bot import picker
from kai.bot.invocation import Invocation, Misused
from kai.bot.message import Body, Button, Code, compose
from kai.bot.settings import CHOSEN_HERE, Pieces, line, outcome, two
from kai.interfaces import Place, Set, Settings, SwitchWorkspace, Workspaces

MOST_BUTTONS = 24
MOST_NAMES = 50
PATIENCE = 60.0
"""Seconds for a switch: the running agent is ended first, and a new place gets its repository."""
FILE = "workspaces.yaml"


class Switch(NamedTuple):
    """Work in a place, which is made first with `create`."""

    name: str
    create: bool = False


class Choose(NamedTuple):
    """A value for this workspace; "" takes the choice back, an empty field all of them."""

    field: str
    value: str


def meaning(arguments: str) -> Switch | Choose | None:
    """What the words behind /workspace ask for; None for nothing but a look. Raises Misused."""
    verb, rest = two(arguments)
    if verb == "new":
        if not rest:
            raise Misused("A new workspace needs a name.")
        return Switch(rest, create=True)
    if verb == "set":
        field, value = two(rest)
        if not value:
            raise Misused("A field and its value are missing, as in /workspace set model opus.")
        return Choose(field.lower(), value)
    if verb == "reset":
        if len(rest.split()) > 1:
            raise Misused("One field can be reset, or all of them.")
        return Choose(rest.lower(), "")
    return Switch(arguments) if arguments else None


async def workspace(asked: Invocation) -> list[Body]:
    """All forms of /workspace; /workspaces is the one without words."""
    wanted = meaning(asked.arguments)
    if isinstance(wanted, Switch):
        return await _switch(asked, wanted)
    if isinstance(wanted, Choose):
        return await _choose(asked, wanted)
    return await _show(asked)


async def _show(asked: Invocation) -> list[Body]:
    found, settings = await asked.ask(Workspaces()), await asked.ask(Settings())
    pieces: Pieces = ["Workspace: ", Code(found.current.name), "\n", Code(found.current.path)]
    for each in settings.settings:
        if each.source in (CHOSEN_HERE, FILE):
            pieces += ["\n", *line(each, settings.ceiling_usd)]
    buttons: list[Button] = []
    others: list[Place] = []
    for place in found.places:
        made = button(place, current=place.name == found.current.name)
        if made and len(buttons) < MOST_BUTTONS:
            buttons.append(made)
        else:
            others.append(place)
    pieces += _others(others)
    if found.base:
        pieces.append("\n\nSwitch: /workspace NAME. Make one: /workspace new NAME.")
    else:
        pieces.append("\n\nThere are no others: the operator hasn't set a workspace_base.")
    return compose(*pieces, buttons=picker.rows(buttons))


def button(place: Place, *, current: bool = False) -> Button | None:
    """The button that switches to a place; None where the command for it would be too long, or mean another thing."""
    try:
        same = place.name.strip() == place.name and meaning(place.name) == Switch(place.name)
    except Misused:
        same = False
    return picker.button(place.name, f"/workspace {place.name}", current=current) if same else None


def _others(places: list[Place]) -> Pieces:
    pieces: Pieces = ["\n\nOthers:"] if places else []
    for number, place in enumerate(places[:MOST_NAMES]):
        pieces += [", " if number else " ", Code(place.name)]
    if len(places) > MOST_NAMES:
        pieces.append(f" and {len(places) - MOST_NAMES} more")
    return pieces


async def _switch(asked: Invocation, wanted: Switch) -> list[Body]:
    done = await asked.ask(SwitchWorkspace(name=wanted.name, create=wanted.create), timeout=PATIENCE)
    pieces: Pieces = ["Made, and current now: " if wanted.create else "Workspace: ", Code(done.place.name)]
    pieces += ["\n", Code(done.place.path)]
    if wanted.create:
        pieces.append("\nWith a git repository." if done.git else "\nWithout a git repository.")
    pieces.append(
        "\nIts session goes on with your next message."
        if done.resumed
        else "\nA fresh session begins there with your next message."
    )
    return compose(*pieces)


async def _choose(asked: Invocation, wanted: Choose) -> list[Body]:
    after = await asked.ask(Set(field=wanted.field, value=wanted.value, workspace=True))
    place: Pieces = ["In the workspace ", Code(after.workspace)]
    if not wanted.field:
        return compose(*place, ", all of your choices are taken back.")
    return compose(*place, ": ", *outcome(after, wanted.field, wanted.value, here=True))
