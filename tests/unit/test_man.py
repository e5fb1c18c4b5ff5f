"""The man pages and the README say what the code, the units and the commands are; where these change, so must they.

The keys of the configuration files are compared in test_config_docs, the pages' mdoc is looked at in test_linters.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import pytest

import kai.inner
import kai.interfaces
from kai.agent.turns import Ended
from kai.bot.commands import TABLE, synopsis
from kai.bot.tables import InboxState, OutboxState
from kai.cli.main import build_parser
from kai.config import Kai, User
from kai.demo.main import options as demo_options
from kai.lib.varlink import Call

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "man").iterdir())
UNITS = sorted(path for path in (ROOT / "units").iterdir() if path.is_file())
INTERFACES = {
    "kai.Agent": "kai-agent@.8",
    "kai.Bot": "kai-bot.8",
    "kai.GitHub": "kai-github.8",
    "kai.Proxy": "kai-proxy.8",
    "kai.Scheduler": "kai-scheduler.8",
    "kai.Timers": "kai-timers.8",
    "kai.Totp": "kai-totp.8",
    "kai.Webhook": "kai-webhook.8",
}
OF_ANOTHER = {"kai-job": "kai-scheduler"}
"""Programs that are told of in the page of another."""
HELP = ("-h", "--help")


def source(page: str) -> str:
    return (ROOT / "man" / page).read_text()


@cache
def sections(page: str) -> dict[str, str]:
    """Heading → text, as a reader sees it on a wide terminal."""
    command = ["mandoc", "-Tutf8", "-O", "width=240", str(ROOT / "man" / page)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^(?=\S)", re.sub(r".\x08", "", text), flags=re.MULTILINE)
    return {part.partition("\n")[0].strip(): part.partition("\n")[2] for part in parts}


def first_words(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def of_instance(text: str) -> str:
    """A unit's own text in the words of the pages: kai-agent@.service is kai-agent@USER.service there."""
    return text.replace("kai-job@.", "kai-job@ID.").replace("@.", "@USER.").replace("%i", "USER")


def settings(unit: Path, key: str) -> list[str]:
    return [of_instance(value) for value in re.findall(rf"^{key}=(\S+)", unit.read_text(), re.MULTILINE)]


def page_of(unit: Path) -> str:
    """The page in section 8 of the daemon that a service or socket belongs to."""
    if unit.stem in ("kai-agent@", "kai-agent-api@"):
        return "kai-agent@.8"
    program = "-".join(unit.stem.removesuffix("@").split("-")[:2])
    return f"{OF_ANOTHER.get(program, program)}.8"


def keys(cls: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(cls):
        if isinstance(field.default, msgspec.Struct):
            yield from keys(type(field.default), f"{prefix}{field.name}.")
        yield f"{prefix}{field.name}"


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be typed after `kai`, with its own options."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if name and not below:
        yield name, parser
    for action in below:
        for word, child in action.choices.items():
            yield from commands(child, f"{name} {word}".strip())


def described(page: str) -> dict[str, str]:
    """Command → what its entry in COMMANDS says, in mdoc."""
    text = source(page).partition("\n.Sh COMMANDS\n")[2].partition("\n.Sh ")[0]
    parts = re.split(r"^\.It Ic ((?:[a-z-]+ ?)+)", text, flags=re.MULTILINE)[1:]
    return {name.strip(): body for name, body in zip(parts[::2], parts[1::2], strict=True)}


def methods() -> dict[str, type[Call[Any]]]:
    found = [each for each in vars(kai.interfaces).values() if isinstance(each, type) and issubclass(each, Call)]
    return {each.NAME: each for each in found if hasattr(each, "NAME")}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_titled_as_its_file_is_named(page: str) -> None:
    title, section = page.rsplit(".", 1)
    assert f".Dt {title.upper()} {section}\n" in source(page)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_refers_to_pages_of_kai_that_exist(page: str) -> None:
    for name, section in re.findall(r"\bXr (kai\S*) (\d)", source(page)):
        assert f"{name}.{section}" in PAGES


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemctl_help_on_a_unit_finds_its_page(unit: Path) -> None:
    found = re.findall(r"^Documentation=man:(\S+)\((\d)\)$", unit.read_text(), re.MULTILINE)
    assert [f"{name}.{section}" in PAGES for name, section in found] == [True]


def test_every_program_has_a_page() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name.removesuffix(".1") for name in PAGES if name.endswith(".1")} == {"kai"}
    assert {re.sub(r"@?\.8", "", name) for name in PAGES if name.endswith(".8")} == {
        OF_ANOTHER.get(name, name) for name in scripts if name != "kai"
    }


def test_the_table_of_units_has_every_unit_with_its_account() -> None:
    rows = sections("kai.7")["UNITS"].partition("Accounts and groups")[0].splitlines()[1:]
    table = {row.split()[0]: row.split()[1] for row in rows if row.strip()}
    assert table == {of_instance(unit.name): (settings(unit, "User") or ["-"])[0] for unit in UNITS}


def test_every_account_and_group_is_explained() -> None:
    text = sections("kai.7")["UNITS"].partition("Accounts and groups")[2]
    lines = (ROOT / "units/sysusers.d/kai.conf").read_text().splitlines()
    names = {line.split()[1] for line in lines if line[:1] in ("g", "u")}
    assert names
    assert {name for name in names if not re.search(rf"^ +(\S+, )*{name}\b", text, re.MULTILINE)} == set()


@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix in (".service", ".socket")], ids=lambda unit: unit.name)
def test_the_page_of_a_daemon_names_its_units_sockets_and_credentials(unit: Path) -> None:
    page = sections(page_of(unit))
    assert of_instance(unit.name) in page["DESCRIPTION"]
    paths = settings(unit, "ListenStream")
    for credential in settings(unit, "LoadCredential") + settings(unit, "LoadCredentialEncrypted"):
        name, _, place = credential.partition(":")
        paths.append(place or f"/etc/credstore/{name}")
    assert [path for path in paths if path not in page["FILES"]] == []


def test_the_commands_of_the_chat_are_those_of_the_bot() -> None:
    rendered = sections("kai.7")["DESCRIPTION"].partition("Commands of the chat")[2]
    text = re.sub(r"\s+", " ", rendered)
    named = re.findall(r"^ +/(\w+)", rendered, re.MULTILINE)
    assert [command.name for command in TABLE] == [name for name in named if name != "ws"]
    assert [synopsis(command) for command in TABLE if f" {synopsis(command)} " not in text] == []


@pytest.mark.parametrize(("interface", "page"), INTERFACES.items())
def test_the_table_of_callers_is_the_one_in_force(interface: str, page: str) -> None:
    rows = re.findall(rf"^ +({re.escape(interface)}\.\w+) +(.+)$", sections(page)["INTERFACE"], re.MULTILINE)
    found = {name: {caller.strip() for caller in callers.split(",")} for name, callers in rows}
    assert found == {name: set(each.CALLERS) for name, each in methods().items() if name.startswith(f"{interface}.")}


def test_every_interface_has_a_page() -> None:
    assert {name.rpartition(".")[0] for name in methods()} == set(INTERFACES)


STATES = {"INBOX": InboxState, "JOURNAL": Literal["running", Ended], "OUTBOX": OutboxState}


@pytest.mark.parametrize(("place", "states"), STATES.items())
def test_the_states_of_the_queue_are_those_of_the_code(place: str, states: Any) -> None:
    text = sections("kai-queue.5")[place]
    tags = re.findall(r"^ {5}(\w+(?:, \w+)*)(?: {2,}|$)", text, re.MULTILINE)
    assert {word for tag in tags for word in tag.split(", ")} == set(get_args(states))


def test_kai_1_describes_every_command_and_no_other() -> None:
    assert sorted(described("kai.1")) == sorted(name for name, _ in commands(build_parser()))


@pytest.mark.parametrize(("name", "parser"), list(commands(build_parser())), ids=lambda value: str(value)[:20])
def test_kai_1_describes_every_option_of_a_command_and_no_other(name: str, parser: argparse.ArgumentParser) -> None:
    if name == "demo":  # it is registered without its imports
        parser = demo_options()
    taken = {option for action in parser._actions for option in action.option_strings if option not in HELP}
    named = {f"-{option}" for option in re.findall(r"^\.It Fl (\S+)", described("kai.1")[name], re.MULTILINE)}
    assert named == taken


def test_the_page_of_the_door_has_its_verbs_fields_and_statuses() -> None:
    page = sections("kai-inner.8")
    words = set(re.findall(r"\w+", page["DESCRIPTION"] + page["ENVIRONMENT"]))
    assert {word for verb, (_, fields) in kai.inner.VERBS.items() for word in (verb, *fields)} <= words
    constants = {value for name, value in vars(kai.inner).items() if name.startswith(("EX_", "NOT_"))}
    told = {int(word) for word in first_words(page["EXIT STATUS"]) if word.isdigit()}
    assert told == constants | {0, 1}


def test_keys_that_have_no_effect_yet_are_keys() -> None:
    text = source("kai.7").partition(".Sh CAVEATS")[2]
    of_kai, _, of_users = text.partition(".Xr kai-users.yaml 5")
    for part, cls in ((of_kai, Kai), (of_users, User)):
        lines = re.findall(r"^\.Ic (.+)$", part, re.MULTILINE)
        found = [word for line in lines for word in line.split() if word not in (",", ".")]
        assert found
        assert set(found) <= set(keys(cls))


def test_the_readme_calls_commands_and_options_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    known = {name.split()[0] for name, _ in commands(build_parser())}
    called = set(re.findall(r"(?:`|\bsudo )kai ([a-z]+)", text))
    assert called
    assert called <= known
    script = (ROOT / "install.sh").read_text()
    options = {option for line in re.findall(r"install\.sh(.*)", text) for option in re.findall(r"--[a-z-]+", line)}
    assert {option for option in options if not re.search(rf"{option}\b", script)} == set()


def test_the_messages_that_are_explained_are_those_of_the_code() -> None:
    code = "".join(path.read_text() for path in (ROOT / "kai").rglob("*.py"))
    found = re.findall(r"^\| `([A-Za-z][^`]*)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    for page in ("kai-bot.8", "kai-proxy.8"):
        text = source(page).partition(".Sh DIAGNOSTICS")[2].partition(".Sh SEE ALSO")[0]
        found += re.findall(r"^\.It ([^@\n]+)$", text, re.MULTILINE)
    assert len(found) > 10
    pieces = [piece.strip(" ;:") for message in found for piece in re.split(r"…|\\&\.\.\.|USER|HOST|claude", message)]
    assert [piece for piece in pieces if piece not in code] == []


def test_the_readme_shows_every_service_in_its_picture() -> None:
    text = (ROOT / "README.md").read_text()
    for unit in UNITS:
        if unit.suffix == ".service":
            assert unit.stem in text
