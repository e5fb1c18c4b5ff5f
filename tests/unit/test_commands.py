"""What commands and buttons mean, and how what they answer is laid out."""

import re
from datetime import datetime

import pytest

from kai.bot import picker
from kai.bot.commands import TABLE, kind_of, parse, pressed, synopsis
from kai.bot.invocation import Misused
from kai.bot.message import Body, Button, Code, compose, decode
from kai.bot.settings import line, zone
from kai.bot.stats import duration, money, shown
from kai.bot.workspaces import Choose, Switch, button, meaning
from kai.interfaces import MemoryText, Place, Setting


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("/new", "new", ""),
        ("/New@some_bot", "new", ""),
        ("/stop   all ", "stop", "all"),
        ("/model\nopus", "model", "opus"),
        ("/ws new a  b\n", "workspace", "new a  b"),
    ],
)
def test_a_command_is_found_by_its_name_or_alias(text: str, name: str, arguments: str) -> None:
    found = parse(text)
    assert found
    assert (found[0].name, found[1]) == (name, arguments)


@pytest.mark.parametrize(
    "text", ["", "/", "new", " /new", "/news", "/new/s", "/new-s", "/compact", "/nèw", "//new", "/new:x"]
)
def test_other_words_with_a_slash_are_no_commands(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("/new", "command"),
        ("/stop all", "control"),
        ("/model", "control"),
        ("/model opus", "command"),
        ("/settings", "control"),
        ("/settings reset", "command"),
        ("/ws", "control"),
        ("/ws home", "command"),
        ("/help model", "control"),
        ("/memory now", "control"),
    ],
)
def test_what_changes_something_keeps_its_place_and_a_look_does_not(text: str, kind: str) -> None:
    found = parse(text)
    assert found
    assert kind_of(*found) == kind


def test_a_button_stands_for_a_command_for_buttons_only() -> None:
    allowed = {"model", "settings", "workspace"}
    for command in TABLE:
        assert bool(pressed(f"do:/{command.name} x")) == (command.name in allowed)
    for data in ("/model x", "do: /model x", "do:model x", "do:do:/model x", "stop:1.2", "do:", ""):
        assert pressed(data) is None


def test_telegram_takes_the_table_as_its_menu() -> None:
    names = [command.name for command in TABLE] + [alias for command in TABLE for alias in command.aliases]
    assert len(set(names)) == len(names)
    for command in TABLE:
        assert re.fullmatch("[a-z0-9_]{1,32}", command.name)
        assert 3 <= len(command.description) <= 256
        assert synopsis(command).count("[") == synopsis(command).count("]")
        if command.example:
            found = parse(command.example)
            assert found
            assert found[0] is command


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", None),
        ("website", Switch("website")),
        ("home", Switch("home")),
        ("my shop", Switch("my shop")),
        ("news", Switch("news")),
        ("new my shop", Switch("my shop", create=True)),
        ("new\nshop", Switch("shop", create=True)),
        ("set model opus", Choose("model", "opus")),
        ("set Budget  5", Choose("budget", "5")),
        ("reset", Choose("", "")),
        ("reset Model", Choose("model", "")),
    ],
)
def test_what_stands_behind_workspace_has_one_meaning(arguments: str, wanted: object) -> None:
    assert meaning(arguments) == wanted


@pytest.mark.parametrize("arguments", ["new", "set", "set model", "reset a b"])
def test_half_a_command_about_workspaces_is_told(arguments: str) -> None:
    with pytest.raises(Misused):
        meaning(arguments)


def test_a_workspace_has_a_button_only_where_the_typed_command_means_it() -> None:
    for name in ("new", "new x", "reset", "set", "set a b", " a", "a ", "x" * 60, ""):
        assert button(Place(name, "/x")) is None, name
    for name in ("a", "a b", "a/b", "-", "\u200b", "..", "do:/new", "x" * 45):
        made = button(Place(name, "/x"))
        assert made, name
        found = pressed(made.data)
        assert found
        assert meaning(found[1]) == Switch(name)
        assert made.text.strip()
        assert len(made.data.encode()) <= 64


def test_a_button_that_is_too_long_for_telegram_is_not_made() -> None:
    assert picker.button("x", "/model " + "é" * 27) is not None
    assert picker.button("x", "/model " + "é" * 28) is None
    made = picker.button("long " * 20, "/model x", current=True)
    assert made
    assert made.text.startswith("✓ long")
    assert made.text.endswith("…")


def test_short_labels_stand_two_in_a_row() -> None:
    short, long = Button("a", "1"), Button("x" * 30, "2")
    laid = Body("", [], picker.rows([short, short, short, long, short])).rows()
    assert laid == [[short, short], [short], [long], [short]]


def test_messages_that_an_earlier_version_stored_keep_their_buttons() -> None:
    old = '{"text":"⏳","buttons":[{"text":"⏹ Stop","data":"stop:1.2"}]}'
    assert decode(old).rows() == [[Button("⏹ Stop", "stop:1.2")]]
    body = Body("x", [], [Button("a", "1"), [Button("b", "2"), Button("c", "3")]])
    assert decode(body.encode()) == body


def test_names_are_code_and_stay_on_their_line() -> None:
    (message,) = compose("In ", Code("a\nb\u202e*c* 😀"), ": ", Code("x"), buttons=[Button("b", "1")])
    assert message.text == "In a b*c* 😀: x"
    assert [(e["type"], e["offset"], e["length"]) for e in message.entities] == [("code", 3, 9), ("code", 14, 1)]
    parts = compose("word " * 2000, buttons=[Button("b", "1")])
    assert [bool(each.buttons) for each in parts] == [False, False, True]
    assert compose("", Code(""))[0].text == "(no text)"


def test_a_value_is_shown_with_unit_and_source() -> None:
    def text(field: str, value: str, source: str, ceiling: float = 0.0) -> str:
        return compose(*line(Setting(field, value, source), ceiling))[0].text

    assert text("model", "", "built-in") == "model: the agent's own default (built-in)"
    assert text("timeout", "120", "kai.yaml") == "timeout: 120 s (kai.yaml)"
    assert text("timeout", "off", "kai.yaml") == "timeout: off (kai.yaml)"
    assert text("budget", "2.5", "your choice", 20.0) == "budget: 2.5 USD (your choice, at most 20 USD)"
    assert re.fullmatch(r"timezone: Asia/Tokyo \(host, now \d\d:\d\d\)", text("timezone", "Asia/Tokyo", "host"))


@pytest.mark.parametrize("name", ["", "Nowhere/Land", "../../etc/passwd", "Europe", "\0", "/etc/localtime", "x" * 5000])
def test_a_time_zone_that_does_not_exist_is_the_hosts(name: str) -> None:
    assert datetime.now(zone(name)).utcoffset() == datetime.now().astimezone().utcoffset()


def test_money_and_time_are_short() -> None:
    assert [money(x) for x in (0, 0.00123, 0.5, 1, 1234.567)] == ["$0.00", "$0.0012", "$0.5000", "$1.00", "$1234.57"]
    assert [duration(s) for s in (-1, 59, 60, 3599, 3600, 86399, 90000)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h 0 min", "23 h 59 min", "1 d 1 h",
    ]  # fmt: skip


def test_the_memory_file_is_shown_below_its_path_with_its_markup() -> None:
    (message,) = shown(MemoryText("/m/MEMORY.md", "**bold** 😀 `code`", "cut"))
    assert message.text == "/m/MEMORY.md\ncut\n\nbold 😀 code"
    units = message.text.encode("utf-16-le")
    found = [(e["type"], units[2 * e["offset"] :][: 2 * e["length"]].decode("utf-16-le")) for e in message.entities]
    assert found == [("code", "/m/MEMORY.md"), ("bold", "bold"), ("code", "code")]
    assert shown(MemoryText("/m", " \n"))[0].text == "/m\nNothing is in it yet."
    assert shown(MemoryText("/m", "", "There is no file."))[0].text == "/m\nThere is no file."
