"""What a user may choose, and which value is in force."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kai.agent import choices
from kai.agent.choices import FIELDS, ChoiceError, Chosen
from kai.config import Agent, Config, Kai, User, Workspace, host_timezone
from kai.interfaces import Setting

PLACE = "/srv/work/site"


def user(**fields: Any) -> User:
    return User(telegram_id=1, name="alice", **fields)


def config(alice: User | None = None, given: str = "", **fields: Any) -> Config:
    """kai.yaml with these fields; `given` are the dotted keys that it sets."""
    return Config(kai=Kai(**fields), users=(alice or user(),), given=frozenset(given.split()))


def checked(
    field: str,
    text: str,
    *,
    setup: Config | None = None,
    workspace: bool = False,
    operator: bool = False,
    in_force: str = "auto",
) -> str:
    setup = setup or config()
    return choices.checked(
        field, text, workspace=workspace, config=setup, user=setup.users[0], operator=operator, in_force=in_force
    )


def effective(
    field: str, chosen: Chosen, *, setup: Config | None = None, place: Workspace | None = None
) -> tuple[Any, str]:
    setup = setup or config()
    return choices.effective(setup, setup.users[0], chosen, PLACE, place, field)


# ---- what was typed ----


@pytest.mark.parametrize(
    ("field", "text", "stored"),
    [
        ("model", " opus ", "opus"),
        ("model", "claude-sonnet-4-5[1m]", "claude-sonnet-4-5[1m]"),
        ("budget", "5", "5.0"),
        ("budget", "$5", "5.0"),
        ("budget", "2.50 USD", "2.5"),
        ("budget", "2$", "2.0"),
        ("budget", ".5", "0.5"),
        ("budget", "10.00", "10.0"),
        ("timeout", "120", "120"),
        ("timeout", "120s", "120"),
        ("timeout", "120 s", "120"),
        ("timeout", "2m", "120"),
        ("timeout", "5 Min", "300"),
        ("timeout", "1h", "3600"),
        ("approvals", "ask", "ask"),
        ("approvals", "ASK", "ask"),
        ("approvals", "auto", "auto"),
        ("streaming", "Off", "off"),
        ("streaming", "draft", "draft"),
        ("timezone", "Europe/Berlin", "Europe/Berlin"),
        ("timezone", "europe/berlin", "Europe/Berlin"),
        ("timezone", "utc", "UTC"),
        *((field, "", "") for field in FIELDS),
        ("", "", ""),
    ],
)
def test_a_choice_is_taken_as_people_type_it(field: str, text: str, stored: str) -> None:
    assert checked(field, text) == stored


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("model", "../../etc", 'model: expected a model\'s name as the agent knows it, such as opus, got "../../etc"'),
        ("model", "--dangerously", 'such as opus, got "--dangerously"'),
        ("model", "sk-ant-0123456789abcdef", "such as opus, got what looks like a secret"),
        ("budget", "0", "budget: expected an amount of US dollars above 0, got 0.0"),
        ("budget", "-1", 'budget: expected an amount of US dollars above 0, got "-1"'),
        ("budget", "nan", 'above 0, got "nan"'),
        ("budget", "1e3", 'above 0, got "1e3"'),
        ("budget", "1,000", 'above 0, got "1,000"'),
        ("budget", "10.01", "budget: expected at most your ceiling of $10.00, got $10.01 (the operator can raise it"),
        ("timeout", "44", "timeout: expected a whole number of seconds, 45 or more, got 44"),
        ("timeout", "off", 'timeout: expected a whole number of seconds, 45 or more, got "off"'),
        ("timeout", "1.5m", 'got "1.5m"'),
        ("timeout", "9" * 5000, f'got "{"9" * 60}…"'),
        ("approvals", "never", 'approvals: expected auto or ask, got "never"'),
        ("approvals", "auto!", 'approvals: expected auto or ask, got "auto!"'),
        ("streaming", "on", 'streaming: expected edit, draft or off, got "on"'),
        ("timezone", "Berlin", 'timezone: expected an IANA time zone such as Europe/Berlin, got "Berlin"'),
        ("timezone", "../../etc/passwd", 'got "../../etc/passwd"'),
        ("colour", "blue", '"colour" is no setting, expected one of model, budget, timeout, approvals, streaming'),
        ("colour", "", '"colour" is no setting'),
        ("a\x1b[31m", "x", r'"a\x1b[31m" is no setting'),
        ("", "x", '"" is no setting'),
    ],
)
def test_a_choice_that_cannot_be_made_names_field_value_and_what_was_expected(
    field: str, text: str, message: str
) -> None:
    with pytest.raises(ChoiceError) as caught:
        checked(field, text)
    assert message in str(caught.value)


@settings(deadline=None)  # other time zones are looked for on disk
@given(st.sampled_from(FIELDS), st.text(max_size=30))
def test_whatever_is_typed_is_refused_or_stored_as_what_it_will_be_read_as(field: str, text: str) -> None:
    try:
        stored = checked(field, text)
    except ChoiceError as error:
        assert str(error).isprintable()
        return
    if stored:
        assert checked(field, stored) == stored
        value, source = effective(field, {("", field): stored})
        assert source == "your choice"
        assert type(value) is type(effective(field, {})[0]) or field == "model"


def test_a_workspace_has_a_model_a_budget_and_a_timeout_of_its_own() -> None:
    assert checked("budget", "$3", workspace=True) == "3.0"
    assert checked("", "", workspace=True) == ""
    with pytest.raises(ChoiceError, match=r"approvals: is the same in all workspaces \(/settings approvals …\)"):
        checked("approvals", "ask", workspace=True)
    with pytest.raises(ChoiceError, match=r"no setting, expected one of model, budget, timeout$"):
        checked("colour", "blue", workspace=True)


def test_the_ceiling_is_the_users_own_or_that_of_all() -> None:
    rich = config(user(max_budget=50.0))
    assert checked("budget", "50", setup=rich) == "50.0"
    with pytest.raises(ChoiceError, match=r"ceiling of \$50\.00, got \$50\.50 .*max_budget of alice in users\.yaml"):
        checked("budget", "50.5", setup=rich)
    with pytest.raises(ChoiceError, match=r"ceiling of \$2\.00"):
        checked("budget", "3", setup=config(budget=2.0), operator=True)  # he raises it in the file


# ---- approvals: the chat may only tighten them ----


def test_only_the_operator_makes_approvals_auto_again() -> None:
    asking = config(approvals="ask")
    for setup, text in ((asking, "auto"), (config(), "auto"), (config(), ""), (asking, "Auto")):
        with pytest.raises(ChoiceError, match=r"only the operator can make it auto again \(sudo kai settings alice "):
            checked("approvals", text, setup=setup, in_force="ask")
    assert checked("approvals", "auto", setup=asking, in_force="ask", operator=True) == "auto!"
    assert checked("approvals", "", in_force="ask", operator=True) == ""


def test_a_reset_of_all_does_not_take_the_users_own_ask_back() -> None:
    with pytest.raises(ChoiceError, match=r"reset approvals.*one by one: /settings reset FIELD"):
        checked("", "", in_force="ask")
    assert checked("", "", in_force="ask", operator=True) == ""
    assert checked("", "", in_force="ask", setup=config(approvals="ask")) == ""  # it tightens, or changes nothing
    assert checked("", "", in_force="ask", workspace=True) == ""


def test_taking_an_operators_auto_back_is_anyones() -> None:
    assert checked("approvals", "", setup=config(approvals="ask"), in_force="auto") == ""
    assert checked("approvals", "ask", setup=config(approvals="ask"), in_force="auto") == "ask"


def test_a_stored_auto_loosens_nothing_but_the_operators_does() -> None:
    asking = config(approvals="ask", given="approvals")
    assert effective("approvals", {("", "approvals"): "auto"}, setup=asking) == ("ask", "kai.yaml")
    assert effective("approvals", {("", "approvals"): "auto!"}, setup=asking) == ("auto", "your choice")
    assert effective("approvals", {("", "approvals"): "ask"}) == ("ask", "your choice")
    assert effective("approvals", {("", "approvals"): "auto"}) == ("auto", "your choice")
    asked = config(user(approvals="ask"))
    assert effective("approvals", {("", "approvals"): "auto"}, setup=asked) == ("ask", "users.yaml")
    assert effective("approvals", {(PLACE, "approvals"): "auto!"}, setup=asked) == ("ask", "users.yaml")


# ---- precedence ----


def test_each_source_gives_way_to_the_one_before_it() -> None:
    chosen = {(PLACE, "timeout"): "101", ("", "timeout"): "103"}
    place = Workspace(path=PLACE, timeout=102)
    full = config(user(timeout=104), given="agent.timeout", agent=Agent(timeout=105))
    assert effective("timeout", chosen, setup=full, place=place) == (101, "your choice for this workspace")
    del chosen[PLACE, "timeout"]
    assert effective("timeout", chosen, setup=full, place=place) == (102, "workspaces.yaml")
    assert effective("timeout", chosen, setup=full) == (103, "your choice")
    assert effective("timeout", {}, setup=full) == (104, "users.yaml")
    assert effective("timeout", {}, setup=msgspec.structs.replace(full, users=(user(),))) == (105, "kai.yaml")
    assert effective("timeout", {}) == (120, "built-in")


def test_the_choice_of_another_workspace_is_none_here() -> None:
    assert effective("model", {("/srv/work/other", "model"): "opus"}) == (None, "built-in")
    setup = config()
    assert choices.effective(setup, setup.users[0], {("", "model"): "opus"}, "", None, "model") == (
        "opus",
        "your choice",
    )


def test_a_workspace_without_a_value_of_its_own_leaves_the_next_source() -> None:
    assert effective("model", {("", "model"): "opus"}, place=Workspace(path=PLACE, timeout=60)) == (
        "opus",
        "your choice",
    )
    assert effective("streaming", {(PLACE, "streaming"): "off"}) == ("edit", "built-in")


@pytest.mark.parametrize(
    ("chosen", "place", "source"),
    [
        ({(PLACE, "budget"): "30.0"}, None, "your choice for this workspace"),
        ({}, 30.0, "workspaces.yaml"),
        ({("", "budget"): "30.0"}, None, "your choice"),
        ({}, None, "users.yaml"),
    ],
)
def test_the_budget_is_cut_to_the_ceiling_whoever_set_it(chosen: Chosen, place: float | None, source: str) -> None:
    capped = config(user(max_budget=4.0), budget=20.0, given="budget")
    where = Workspace(path=PLACE, budget=place) if place else None
    assert effective("budget", chosen, setup=capped, place=where) == (4.0, source)


@pytest.mark.parametrize(
    ("field", "stored"),
    [
        ("timezone", "Mars/Olympus"),
        ("timeout", "5"),
        ("timeout", "soon"),
        ("model", "--resume"),
        ("budget", "-3"),
        ("streaming", "hologram"),
        ("approvals", "perhaps"),
    ],
)
def test_a_choice_that_is_no_longer_valid_is_passed_over(field: str, stored: str) -> None:
    assert effective(field, {("", field): stored, (PLACE, field): stored}) == effective(field, {})


def test_an_unknown_field_is_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        effective("backend", {})


# ---- as it is shown ----


def test_settings_are_shown_with_their_units_and_sources() -> None:
    setup = config(user(timezone="Europe/Berlin", max_budget=25.0), given="budget", budget=7.5)
    chosen = {("", "approvals"): "ask", (PLACE, "timeout"): "300"}
    place = Workspace(path=PLACE, model="opus")
    assert choices.settings(setup, setup.users[0], chosen, PLACE, place) == [
        Setting("model", "opus", "workspaces.yaml"),
        Setting("budget", "7.50", "kai.yaml"),
        Setting("timeout", "300 s", "your choice for this workspace"),
        Setting("approvals", "ask", "your choice", ["ask"]),
        Setting("streaming", "edit", "built-in", ["edit", "draft", "off"]),
        Setting("timezone", "Europe/Berlin", "users.yaml"),
    ]
    plain = {each.field: each for each in choices.settings(config(), user(), {}, "", None)}
    assert plain["model"] == Setting("model", "", "built-in")
    assert plain["approvals"].choices == ["auto", "ask"]
    assert (plain["timezone"].value, plain["timezone"].source) == (host_timezone(), "host")


def test_what_is_shown_can_be_chosen() -> None:
    for setting in choices.settings(config(), user(), {}, "", None):
        if setting.value:
            assert (
                effective(setting.field, {("", setting.field): checked(setting.field, setting.value)})[0]
                == (effective(setting.field, {})[0])
            )


def test_a_budget_below_a_cent_is_not_shown_as_nothing() -> None:
    assert choices.money(0.004) == "0.004"
    assert choices.money(1234567.891) == "1234567.89"
