"""workspaces.yaml: three spellings, one meaning, and nothing outside the bases."""

from __future__ import annotations

from pathlib import Path

import pytest

from kai.config import Config, ConfigError, User, Workspace, check, expand, load

USERS = """
users:
- {telegram_id: 1, name: alice, workspace_base: ~/projects, home_workspace: /srv/alice-home}
- {telegram_id: 2, name: bob}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "users.yaml").write_text(USERS)
    (tmp_path / "kai.yaml").write_text("workspace_base: /srv/work\n")
    return tmp_path


def config(directory: Path, text: str) -> Config:
    (directory / "workspaces.yaml").write_text(text)
    return load(directory)


def fault(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(directory, text)
    return str(caught.value).removeprefix(f"{directory}/workspaces.yaml: ")


def test_all_fields_are_read(directory: Path) -> None:
    text = """
workspaces:
  ~/projects//site/:
    model: opus
    budget: 5
    timeout: 300
    env: {PORT: 8080, DEBUG: true, NAME: x, EMPTY: , ZERO: 010, ON: on}
    env_file: ~/projects/site/.env
    system_prompt: |
      Django.
    trust_settings: yes
  /srv/work/x:
    system_prompt_file: /srv/work/x/PROMPT.md
  /srv/work/y:
"""
    env = (("PORT", "8080"), ("DEBUG", "true"), ("NAME", "x"), ("EMPTY", ""), ("ZERO", "010"), ("ON", "on"))
    assert config(directory, text).workspaces == (
        Workspace(
            path="~/projects/site",
            model="opus",
            budget=5.0,
            timeout=300,
            env=env,
            env_file="~/projects/site/.env",
            system_prompt="Django.\n",
            trust_settings=True,
        ),
        Workspace(path="/srv/work/x", system_prompt_file="/srv/work/x/PROMPT.md"),
        Workspace(path="/srv/work/y"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "workspaces: {/srv/work/x: {model: opus, env: {A: b}}}",
        "workspaces: {/srv/work/x: {claude: {model: opus, env: {A: b}}}}",
        "workspaces: [{path: /srv/work/x, claude: {model: opus, env: {A: b}}}]",
        "workspaces: [{path: /srv/work/x, model: opus, claude: {env: {A: b}}}]",
        "/srv/work/x: {model: opus, env: {A: b}}",
    ],
)
def test_the_originals_form_and_the_short_one_mean_the_same(directory: Path, text: str) -> None:
    assert config(directory, text).workspaces == (Workspace(path="/srv/work/x", model="opus", env=(("A", "b"),)),)


@pytest.mark.parametrize("text", ["", "workspaces:\n", "workspaces: {}\n", "workspaces: []\n"])
def test_the_file_may_be_empty(directory: Path, text: str) -> None:
    assert config(directory, text).workspaces == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/srv/work/x: {modle: opus}", '/srv/work/x.modle: unknown key, expected "model" perhaps'),
        ("/srv/work/x: {claude: {modle: opus}}", '/srv/work/x.claude.modle: unknown key, expected "model" perhaps'),
        ("/srv/work/x: {claude: {trust_settings: true}}", "/srv/work/x.claude.trust_settings: unknown key"),
        ("/srv/work/x: {claude: opus}", '/srv/work/x.claude: expected a mapping of settings, got "opus"'),
        ("/srv/work/x: {model: a, claude: {model: b}}", "/srv/work/x.claude.model: model stands beside claude: too"),
        ("/srv/work/x: {system_prompt: a, system_prompt_file: /b}", "/srv/work/x: has both system_prompt and"),
        ("/srv/work/x: {timeout: 5}", "/srv/work/x.timeout: expected a whole number of seconds, 45 or more, got 5"),
        ("/srv/work/x: {budget: 0}", "/srv/work/x.budget: expected an amount of US dollars above 0, got 0"),
        ("/srv/work/x: {env: [A]}", "/srv/work/x.env: expected a mapping from variable to text, got a list"),
        ("/srv/work/x: {env: {A: 1.10}}", "/srv/work/x.env.A: expected a text, got a number with a point (put it in"),
        ("/srv/work/x: {env: {A: [1]}}", "/srv/work/x.env.A: expected a text, got a list"),
        ("/srv/work/x: {env: {A=B: c}}", '/srv/work/x.env."A=B": is not a variable\'s name'),
        ('/srv/work/x: {env: {A: "a\\0b"}}', "/srv/work/x.env.A: expected a text of at most 32768 characters"),
        ("/srv/work/x: {env_file: .env}", "/srv/work/x.env_file: expected an absolute path"),
        ("/srv/work/x: opus", '/srv/work/x: expected a mapping of settings, got "opus"'),
        ("/srv/work/x: {path: /y}", "/srv/work/x.path: unknown key (the path is the key of the mapping)"),
        ("workspaces: {x: {}}", 'workspaces[x].path: expected an absolute path, or one that begins with ~/, got "x"'),
        ("workspaces: {/srv/work/../x: {}}", "workspaces[/srv/work/../x].path: expected an absolute path"),
        ("workspaces: [{model: opus}]", "workspaces[0].path: missing, expected an absolute path"),
        ("workspaces: [/srv/work/x]", 'workspaces[0]: expected a mapping with path, got "/srv/work/x"'),
        ("workspaces: 5", "workspaces: expected a mapping from path to settings, got 5"),
        ("workspace: {}", 'workspace: unknown key, expected "workspaces" perhaps'),
        ("[]", 'expected a mapping with the key "workspaces", got an empty list'),
        ("{/srv/work/x: {}, /srv/work//x/: {}}", '/srv/work//x/: the path "/srv/work/x" stands here a second time'),
    ],
)
def test_a_fault_is_named_with_its_path(directory: Path, text: str, message: str) -> None:
    assert fault(directory, text).startswith(message)


def test_a_value_of_the_environment_is_never_shown(directory: Path) -> None:
    assert "hunter2" not in fault(directory, '/srv/work/x: {env: {A: "hunter2\\0"}}')
    assert "hunter2" not in fault(directory, "/srv/work/x: {env: hunter2}")


@pytest.mark.parametrize("path", ["/srv/other", "/srv/workshop/x", "~/other", "/var/lib/kai/users/eve/work"])
def test_a_path_outside_every_base_is_refused(directory: Path, path: str) -> None:
    (directory / "users.yaml").write_text(USERS.replace("workspace_base: ~/projects, ", ""))
    (directory / "kai.yaml").write_text("workspace_base: ~/b\n" if path == "~/other" else "workspace_base: /srv/work\n")
    (directory / "users.yaml").write_text("users:\n- {telegram_id: 1, name: alice, home_workspace: ~/h}\n")
    if path == "~/other":
        assert fault(directory, f"workspaces: {{{path}: {{}}}}").startswith(
            f"{path}: lies outside every workspace_base"
        )
    else:
        (directory / "users.yaml").write_text("users:\n- {telegram_id: 1, name: alice}\n")
        assert fault(directory, f"workspaces: {{{path}: {{}}}}").startswith(
            f"{path}: lies outside every workspace_base"
        )


@pytest.mark.parametrize("path", ["/srv/work/deep/x", "~/projects/x", "/srv/alice-home", "/var/lib/kai/users/bob/work"])
def test_a_path_beneath_a_base_or_at_somebodys_home_is_taken(directory: Path, path: str) -> None:
    assert config(directory, f"workspaces: {{{path}: {{}}}}").workspaces[0].path == path


def test_with_the_home_directories_known_a_tilde_is_compared_with_an_absolute_base(directory: Path) -> None:
    (directory / "users.yaml").write_text("users:\n- {telegram_id: 1, name: a, workspace_base: /home/a/p}\n")
    (directory / "kai.yaml").unlink()
    (directory / "workspaces.yaml").write_text("workspaces: {~/p/x: {}, ~/q/x: {}}\n")
    assert check(directory) == []
    faults = check(directory, lambda user: Path("/home") / user.name)
    assert [line.removeprefix(f"{directory}/").split(": ")[1] for line in faults] == ["~/q/x"]
    assert check(directory, lambda _user: None) == []


def test_each_user_has_the_settings_of_the_workspaces_that_he_can_reach(directory: Path) -> None:
    found = config(
        directory, "workspaces: {~/projects/x: {model: a}, /srv/work/x: {model: b}, /srv/alice-home: {model: c}}\n"
    )
    alice, bob = found.users
    models = {path: each.model for path, each in found.workspaces_of(alice, Path("/home/alice")).items()}
    assert models == {Path("/home/alice/projects/x"): "a", Path("/srv/alice-home"): "c"}
    assert list(found.workspaces_of(bob, Path("/home/bob"))) == [Path("/srv/work/x")]


def test_a_tilde_is_the_home_that_the_caller_gives() -> None:
    home = Path("/home/alice")
    assert expand("~", home) == home
    assert expand("~/a/b", home) == Path("/home/alice/a/b")
    assert expand("/a/~/b", home) == Path("/a/~/b")


def test_a_workspace_of_nobody_is_not_reached(directory: Path) -> None:
    found = config(directory, "workspaces: {/srv/work/x: {}}\n")
    stranger = User(telegram_id=9, name="eve", workspace_base="/srv/eve")
    assert found.workspaces_of(stranger, Path("/home/eve")) == {}
