"""Workspaces through the door: names, files that workspaces.yaml points to, and what a fresh process is told."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from kai.agent import context as the_context
from kai.agent import door as the_door
from kai.agent import history
from kai.agent.door import DoorError, FileRefused
from kai.agent.workspaces import Places, WorkspaceError, environment, workspace_prompt
from kai.config import User, Workspace
from kai.interfaces import Place

DOOR = the_door.command(User(telegram_id=1, name="alice"), one_uid=True)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """alice's home, and a base with `site`, a link that leads out, and other things."""
    base = tmp_path / "base"
    (base / "site/api").mkdir(parents=True)
    (base / "Über uns").mkdir()
    (base / ".hidden").mkdir()
    (base / "file").touch()
    (base / "out").symlink_to("/etc")
    (base / "inside").symlink_to("site")
    os.mkfifo(base / "pipe")
    (tmp_path / "home").mkdir()
    return Places(DOOR, base, tmp_path / "home")


async def refusal(places: Places, name: str, *, create: bool = False) -> str:
    with pytest.raises(WorkspaceError) as caught:
        await (places.create(name) if create else places.find(name))
    return str(caught.value)


# ---- names ----


@pytest.mark.parametrize("name", ["site", " site ", "site/", "site/api", "Über uns"])
async def test_a_workspace_is_found_by_its_name(places: Places, name: str) -> None:
    assert places.base
    plain = name.strip().removesuffix("/")
    assert await places.find(name) == Place(name=plain, path=f"{places.base}/{plain}")


async def test_home_is_a_name_of_its_own(places: Places) -> None:
    assert await places.find("home") == Place(name="home", path=str(places.home))
    assert await Places(DOOR, None, places.home).find("home") == Place(name="home", path=str(places.home))


async def test_a_home_beneath_the_base_is_home_by_either_name(places: Places) -> None:
    assert places.base
    at_home = Places(DOOR, places.base, places.base / "site")
    assert await at_home.find("site") == await at_home.find("home") == Place("home", f"{places.base}/site")


def test_the_name_of_a_path_is_the_one_that_leads_there(places: Places) -> None:
    assert places.base
    assert places.name_of(places.home) == "home"
    assert places.name_of(places.base / "site/api") == "site/api"
    assert places.name_of(places.base) == str(places.base)
    assert places.name_of(Path("/srv/elsewhere")) == "/srv/elsewhere"
    assert Places(DOOR, None, places.home).name_of(places.base / "site") == f"{places.base}/site"


ODD = [
    ("", "a workspace needs a name"),
    ("/", "named by its path below"),
    ("/etc", "/etc: a workspace is named by its path below"),
    ("~", "without a / or ~ before it"),
    ("~/projects", "without a / or ~ before it"),
    ("~root", "without a / or ~ before it"),
    ("..", "no . or .. in it"),
    (".", "no . or .. in it"),
    ("site/..", "no . or .. in it"),
    ("site/../../etc", "no . or .. in it"),
    ("site/./api", "no . or .. in it"),
    ("site//api", "nothing between two /"),
    ("site//", "nothing between two /"),
    (".hidden", "begins with . or -"),
    ("site/.git", "begins with . or -"),
    ("-rf", "begins with . or -"),
    ("site/--help", "begins with . or -"),
    ("new\nline", "the unprintable character U+000A"),
    ("a\0b", "the unprintable character U+0000"),
    ("\x1b[31mred", "the unprintable character U+001B"),
    ("a\u202eb", "the unprintable character U+202E"),
    ("a\ud800b", "the unprintable character U+D800"),
    ("a\u00a0b", "the unprintable character U+00A0"),
    ("$(reboot)", "the character $ is not for a workspace's name"),
    ("a;b", "the character ;"),
    ("a'b", "the character '"),
    ("a*", "the character *"),
    ("a\\b", "the character \\"),
    ("😀", "the character 😀"),
    ("site /api", "begins or ends with a space"),
    ("a/b/c/d/e", "at most 4 directories deep"),
    ("x" * 201, "at most 200 characters"),
    ("ü" * 128, "255 bytes"),
    ("x" * 5000, "at most 200 characters"),
    ("x/" * 3000, "at most 200 characters"),
]


@pytest.mark.parametrize(("name", "reason"), ODD)
async def test_a_name_that_could_lead_elsewhere_is_refused_before_the_door(name: str, reason: str) -> None:
    closed = Places(("/nonexistent",), Path("/srv/work"), Path("/srv/home"))
    for create in (False, True):
        told = await refusal(closed, name, create=create)
        assert reason in told
        assert told.isprintable()
        assert len(told) < 300


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone", "There is no workspace gone in {base}; /workspace new gone makes it."),
        ("gone/deep", "/workspace new gone/deep makes it."),
        ("Site", "There is no workspace Site"),
        ("out", "out: is, or leads over, a symbolic link."),
        ("out/ssh", "out/ssh: is, or leads over, a symbolic link."),
        ("inside", "inside: is, or leads over, a symbolic link."),
        ("file", "file: is, or leads over, something that is no directory."),
        ("file/x", "no directory"),
        ("pipe", "no directory"),
    ],
)
async def test_what_is_no_workspace_is_refused_with_the_reason(places: Places, name: str, reason: str) -> None:
    assert reason.format(base=places.base) in await refusal(places, name)


# ---- new ones ----


@pytest.mark.parametrize("name", ["fresh", "site/new", "Ein Projekt"])
async def test_a_new_workspace_has_a_repository(places: Places, name: str) -> None:
    assert places.base
    assert await places.create(name) == (Place(name=name, path=f"{places.base}/{name}"), True)
    assert (places.base / name / ".git/HEAD").is_file()
    assert (places.base / name).stat().st_uid == os.geteuid()
    assert await places.find(name) == Place(name=name, path=f"{places.base}/{name}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("home", "No new workspace can be called home"),
        ("new", "No new workspace can be called new"),
        ("set", "No new workspace can be called set"),
        ("site", "site exists already in {base}; /workspace site goes there."),
        ("out", "out exists already"),
        ("file", "file exists already"),
        ("gone/new", "There is no workspace gone in {base} to make gone/new in; /workspace new gone makes it."),
        ("out/new", "out/new: is, or leads over, a symbolic link."),
        ("inside/new", "inside/new: is, or leads over, a symbolic link."),
        ("pipe/new", "pipe/new: is, or leads over, something that is no directory."),
    ],
)
async def test_a_workspace_that_cannot_be_made_says_why(places: Places, name: str, reason: str) -> None:
    assert places.base
    before = sorted(places.base.rglob("*"))
    assert reason.format(base=places.base) in await refusal(places, name, create=True)
    assert sorted(places.base.rglob("*")) == before


# ---- the base ----


async def test_without_a_base_the_operator_is_named(places: Places) -> None:
    without = Places(DOOR, None, places.home)
    for create in (False, True):
        assert "the operator sets workspace_base" in await refusal(without, "site", create=create)
    with pytest.raises(WorkspaceError, match="the operator sets workspace_base"):
        await without.listing()


async def test_a_base_that_is_missing_is_named_with_who_makes_it(places: Places, tmp_path: Path) -> None:
    gone = Places(DOOR, tmp_path / "gone", tmp_path / "gone/home")
    for create in (False, True):
        told = await refusal(gone, "site", create=create)
        assert f"{tmp_path}/gone (workspace_base), can't be used by the agent's account: No such file" in told
        assert "The operator makes it" in told
    with pytest.raises(WorkspaceError, match="workspace_base"):
        await gone.listing()
    assert "sets another home_workspace in users.yaml" in await refusal(gone, "home")


async def test_the_listing_has_what_can_be_switched_to(places: Places) -> None:
    assert await places.listing() == ["site", "Über uns"]
    assert places.base
    for name in ("b", "A", "C", "$odd", "x" * 210, "-dash", "home", "new"):
        (places.base / name).mkdir()
    assert await places.listing() == ["A", "b", "C", "site", "Über uns"]
    for number in range(150):
        (places.base / f"n{number:03}").mkdir()
    assert len(await places.listing()) <= 100


# ---- a door that lies or doesn't open ----


def lying(tmp_path: Path, answer: bytes, *, then: str = "") -> tuple[str, ...]:
    """A door behind which something else answers: an agent's account could put itself there."""
    (tmp_path / "answer").write_bytes(answer)
    script = f"import sys; sys.stdout.buffer.write(open({str(tmp_path / 'answer')!r}, 'rb').read()); {then}"
    return (sys.executable, "-IS", "-c", script)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b'{"names": "x"}\n',
        b'{"code": "x"}\n',
        b'{"x": ' + b"[" * 60_000,
        b"\xff\xfe\n",
        b"x" * 200_000,
    ],
)
async def test_an_answer_that_is_none_is_told_and_believed_in_nothing(tmp_path: Path, answer: bytes) -> None:
    liar = Places(lying(tmp_path, answer), tmp_path, tmp_path)
    assert "doesn't answer" in await refusal(liar, "site")
    with pytest.raises(DoorError):
        await the_door.read(liar.door, tmp_path, "file", 100)


async def test_names_and_errors_that_an_account_makes_up_stay_harmless(tmp_path: Path) -> None:
    names = ["../../etc", "/etc", "a\nb", "\x1b[31m", "good", "good", *(f"n{number}" for number in range(500))]
    answer = msgspec.json.encode({"names": names, "path": "/etc", "size": 1 << 40}) + b"\n"
    found = await Places(lying(tmp_path, answer), tmp_path / "base", tmp_path).listing()
    assert found[0] == "good"
    assert len(found) <= 100
    assert not set(found) & set(names[:4])
    answer = msgspec.json.encode({"error": "\x1b[31m" + "x" * 5000, "code": 403}) + b"\n"
    told = await refusal(Places(lying(tmp_path, answer), tmp_path, tmp_path), "site")
    assert told.isprintable()
    assert len(told) < 300
    assert (await Places(lying(tmp_path, b'{"path":"/etc"}\n'), tmp_path, tmp_path).find("site")).path == (
        f"{tmp_path}/site"
    )


async def test_a_door_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_door, "SLOWEST", 0.5)
    silent = Places(lying(tmp_path, b"", then="import time; time.sleep(60)"), tmp_path, tmp_path)
    assert "took longer than 0.5 s" in await refusal(silent, "site")


async def test_a_door_that_never_stops_talking_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_door, "SLOWEST", 1.0)
    flood = "[(sys.stdout.write('x' * 65536), sys.stderr.write('y' * 65536)) for _ in iter(int, 1)]"
    loud = Places(lying(tmp_path, b"", then=flood), tmp_path, tmp_path)
    before = int(Path("/proc/self/statm").read_text().split()[1])
    assert "doesn't answer" in await refusal(loud, "site")
    assert (int(Path("/proc/self/statm").read_text().split()[1]) - before) * 4096 < 16 << 20


async def test_a_missing_door_is_told(tmp_path: Path) -> None:
    assert "/nonexistent: No such file" in await refusal(Places(("/nonexistent",), tmp_path, tmp_path), "site")


# ---- env and env_file ----


async def test_env_goes_before_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# secrets\nexport A='from file'\nB=2\n")
    place = Workspace(path="~/site", env=(("A", "from yaml"), ("C", "3")), env_file="~/.env")
    assert dict(await environment(DOOR, place, tmp_path)) == {"A": "from yaml", "B": "2", "C": "3"}
    assert await environment(DOOR, Workspace(path="/x", env=(("A", "1"),)), tmp_path) == (("A", "1"),)
    assert await environment(DOOR, None, tmp_path) == ()


@pytest.mark.parametrize("key", ["env_file", "system_prompt_file"])
@pytest.mark.parametrize("fault", ["missing", "link", "pipe", "directory", "device", "large", "in a linked directory"])
async def test_a_file_that_cannot_be_used_is_named_and_nothing_of_it_shown(
    tmp_path: Path, key: str, fault: str
) -> None:
    path = tmp_path / "given"
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("A=hunter2\n")
    reason = {
        "missing": f"{key} of this workspace is missing: {path}. Put it there",
        "link": "leads over a symbolic link",
        "large": "bytes, more than",
        "in a linked directory": "is a symbolic link",
    }.get(fault, "not a regular file")
    if fault == "link":
        path.symlink_to("real/file")
    elif fault == "pipe":
        os.mkfifo(path)
    elif fault == "directory":
        path.mkdir()
    elif fault == "device":
        path = Path("/dev/zero")
    elif fault == "large":
        path.write_text("A=hunter2\n" * 27000)
    elif fault == "in a linked directory":
        path.symlink_to("real")
        path = path / "file"
    place = Workspace(path="/x", **{key: str(path)})  # type: ignore[arg-type]
    with pytest.raises(WorkspaceError) as caught:
        await (environment if key == "env_file" else workspace_prompt)(DOOR, place, tmp_path)
    assert reason in str(caught.value)
    assert key in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_bad_line_is_named_with_file_and_number_and_its_value_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("A=1\nhunter2 B\n")
    with pytest.raises(WorkspaceError) as caught:
        await environment(DOOR, Workspace(path="/x", env_file="~/.env"), tmp_path)
    assert str(caught.value) == (
        f"env_file of this workspace: {tmp_path}/.env, line 2: expected NAME=VALUE, or a comment after #."
    )
    assert "hunter2" not in caplog.text


async def test_the_prompt_of_a_workspace_stands_in_the_yaml_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "AGENT.md").write_bytes("Be brief, ü.\n\xff".encode() + b"\xff")
    assert await workspace_prompt(DOOR, Workspace(path="/x", system_prompt=" Django.\n"), tmp_path) == "Django."
    found = await workspace_prompt(DOOR, Workspace(path="/x", system_prompt_file="~/AGENT.md"), tmp_path)
    assert found == "Be brief, ü.\nÿ\ufffd"
    assert await workspace_prompt(DOOR, Workspace(path="/x"), tmp_path) == ""
    assert await workspace_prompt(DOOR, None, tmp_path) == ""


# ---- what a process of the agent is told at its start ----


class Ground:
    """A user's directory with configuration, home and one workspace."""

    def __init__(self, tmp_path: Path) -> None:
        self.base, self.config = tmp_path / "alice", tmp_path / "etc"
        self.home, self.site = tmp_path / "home", tmp_path / "base/site"
        for directory in (self.base / "memory", self.base / "history", self.config / "identity.d"):
            directory.mkdir(parents=True)
        for directory in (self.home / ".claude", self.site / ".claude"):
            directory.mkdir(parents=True)

    async def told(self, workspace: Path, *, fresh: bool = False, **more: object) -> str:
        return await the_context.system_prompt(
            config_dir=self.config,
            user="alice",
            base=self.base,
            home=self.home,
            workspace=workspace,
            door=DOOR,
            fresh=fresh,
            **more,  # type: ignore[arg-type]
        )


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


async def test_identity_memory_and_history_are_given_in_every_workspace(ground: Ground) -> None:
    (ground.config / "identity.md").write_text("You are Kai.")
    (ground.config / "identity.d/alice.md").write_text("Alice likes it short.")
    (ground.config / "identity.d/bob.md").write_text("Bob's alone.")
    (ground.base / "memory/MEMORY.md").write_text("Likes tea.")
    for number in range(25):
        history.append(ground.base / "history", dir="user", turn="1.1", text=f"message {number}")
    for workspace in (ground.home, ground.site):
        text = await ground.told(workspace, fresh=True)
        for expected in ("You are Kai.", "Alice likes it short.", "Likes tea.", str(ground.base / "history")):
            assert expected in text
        assert "Bob's alone." not in text
        assert "message 5" in text
        assert "message 24" in text
        assert "message 4\n" not in text
        assert "message 24" not in await ground.told(workspace)


async def test_an_edited_identity_and_memory_are_given_at_the_next_start(ground: Ground) -> None:
    (ground.config / "identity.md").write_text("Old voice.")
    assert "Old voice." in await ground.told(ground.home)
    (ground.config / "identity.md").write_text("New voice.")
    (ground.base / "memory/MEMORY.md").write_text("New memory.")
    text = await ground.told(ground.home)
    assert "New voice." in text
    assert "New memory." in text
    assert "Old voice." not in text


async def test_the_homes_instructions_are_given_everywhere_and_the_workspaces_own_there(ground: Ground) -> None:
    (ground.home / ".claude/CLAUDE.md").write_text("Of the home.")
    (ground.home / "CLAUDE.md").write_text("Of the home, second.")
    (ground.site / "CLAUDE.md").write_text("Of the site.")
    text = await ground.told(ground.site)
    assert text.count("Of the home.") == text.count("Of the site.") == 1
    assert "Of the home, second." not in text
    at_home = await ground.told(ground.home)
    assert at_home.count("Of the home.") == 1
    assert "Of the site." not in at_home


async def test_what_the_agent_reads_by_itself_is_not_given_twice(ground: Ground) -> None:
    (ground.home / ".claude/CLAUDE.md").write_text("Of the home.")
    (ground.home / "CLAUDE.md").write_text("Of the home, second.")
    (ground.site / "CLAUDE.md").write_text("Of the site.")
    native = the_context.read_by_claude(ground.site, ground.home, trusted=False)
    text = await ground.told(ground.site, native=native)
    assert "Of the home" not in text
    assert "Of the site." in text
    native = the_context.read_by_claude(ground.site, ground.site, trusted=True)
    text = await ground.told(ground.site, native=native)
    assert "Of the home." in text
    assert "Of the site." not in text


async def test_the_workspace_is_named_and_what_the_configuration_says_of_it_given(ground: Ground) -> None:
    text = await ground.told(ground.site, name="site", instructions="Run pytest first.")
    assert f'You work in {ground.site}, the workspace that the user calls "site".\n\nRun pytest first.' in text


@pytest.mark.parametrize("what", ["link", "pipe", "large"])
async def test_instructions_that_cannot_be_given_are_told_and_hold_nothing_up(ground: Ground, what: str) -> None:
    path = ground.site / "CLAUDE.md"
    if what == "link":
        (ground.base / "secret").write_text("of the supervisor")
        path.symlink_to(ground.base / "secret")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 30)
    with pytest.raises(FileRefused):
        await the_door.read(DOOR, ground.site, "CLAUDE.md", 100)
    async with asyncio.timeout(5):
        text = await ground.told(ground.site)
    assert f"# Instructions from {path}\n\n(They are not given here: CLAUDE.md: " in text
    assert "of the supervisor" not in text


@pytest.mark.parametrize("what", ["link", "pipe", "sparse", "directory"])
async def test_a_memory_that_is_no_file_is_told_to_the_agent(ground: Ground, what: str) -> None:
    path = ground.base / "memory/MEMORY.md"
    if what == "link":
        path.symlink_to("/etc/hostname")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 30)
    text = await ground.told(ground.home)
    assert "a regular file that its group can read" in text
    assert ("Only its first 64 KiB" if what == "sparse" else "It can't be read") in text
    assert len(text) < 100_000


async def test_a_door_that_does_not_open_leaves_the_instructions_out(ground: Ground) -> None:
    (ground.config / "identity.md").write_text("You are Kai.")
    text = await the_context.system_prompt(
        config_dir=ground.config,
        user="alice",
        base=ground.base,
        home=ground.home,
        workspace=ground.site,
        door=("/bin/false",),
        fresh=True,
    )
    assert "You are Kai." in text
    assert "# Instructions" not in text
