"""`kai users apply`: what it makes, what it refuses, what it takes back. The host is simulated: it changes as told."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from kai.cli import accounts, apply, login, setting, users
from kai.cli.fail import Failure
from kai.cli.host import Host
from kai.config import Config, ConfigError, Kai, User, config, load
from kai.config.users import Limits
from kai.config.workspaces import Workspace

ALICE = User(telegram_id=1, name="alice", os_user="alice")
BOB = User(telegram_id=2, name="bob")
PEOPLE = {"alice": 1001, "carol": 1003}


class FakeHost(Host):
    """Accounts, groups, files, directories and units in dictionaries; programs have their effect on them."""

    def __init__(self) -> None:
        self.passwd: dict[str, pwd.struct_passwd] = {}
        self.groups: dict[str, grp.struct_group] = {}
        self.files: dict[Path, str] = {Path("/etc/sudoers"): "root ALL=(ALL) ALL\n@includedir /etc/sudoers.d\n"}
        self.modes: dict[Path, int] = {}
        self.directories: dict[Path, os.stat_result] = {}
        self.enabled: set[str] = set()
        self.active: set[str] = {"kai.target"}
        self.failed: set[str] = set()
        self.commands: list[tuple[str, ...]] = []
        self.visudo = True
        for name in ("kai-bot", "kai-proxy"):
            self.add(name, 900 + len(self.passwd))
        for name in apply.GROUPS:
            self.groups[name] = grp.struct_group((name, "x", 800 + len(self.groups), []))
        for name, uid in PEOPLE.items():
            self.add(name, uid)

    def add(self, name: str, uid: int, mark: str = "") -> None:
        self.passwd[name] = pwd.struct_passwd((name, "x", uid, uid, mark, f"/home/{name}", "/bin/bash"))
        self.groups[name] = grp.struct_group((name, "x", uid, []))

    def account(self, name: str) -> pwd.struct_passwd | None:
        return self.passwd.get(name)

    def accounts(self) -> list[pwd.struct_passwd]:
        return list(self.passwd.values())

    def group(self, name: str) -> grp.struct_group | None:
        return self.groups.get(name)

    def group_name(self, gid: int) -> str:
        return next(name for name, group in self.groups.items() if group.gr_gid == gid)

    def stat(self, path: Path) -> os.stat_result | None:
        return self.directories.get(path)

    def read(self, path: Path) -> str:
        return self.files.get(path, "")

    def write(self, path: Path, text: str, *, mode: int = 0o644, check: Sequence[str] = ()) -> None:
        if check:
            self.commands.append(tuple(check))
            if not self.visudo:
                raise Failure(f"{path} is left as it was")
        self.files[path], self.modes[path] = text, mode

    def remove(self, path: Path) -> None:
        self.files.pop(path, None)

    def unit(self, question: str, unit: str) -> bool:
        return unit in {"is-active": self.active, "is-enabled": self.enabled, "is-failed": self.failed}[question]

    def run(self, *command: str, why: str = "") -> None:
        self.commands.append(command)
        match command:
            case ("systemd-sysusers", path):
                for line in self.files[Path(path)].splitlines():
                    if made := re.match(r'u (\S+) - "([^"]*)"', line):
                        if made[1] not in self.passwd:
                            self.add(made[1], 500 + len(self.passwd), made[2])
                    elif given := re.match(r"m (\S+) (\S+)", line):
                        members = self.groups[given[2]].gr_mem
                        members += [given[1]] if given[1] not in members else []
            case ("systemd-tmpfiles", "--create", path):
                for line in self.files[Path(path)].splitlines()[1:]:
                    _, name, mode, owner, group, _age = line.split()
                    self.make(Path(name), int(mode, 8), self.passwd[owner].pw_uid if owner != "root" else 0, group)
            case ("gpasswd", "--delete", account, name):
                self.groups[name].gr_mem.remove(account)
            case ("systemctl", "enable", unit):
                self.enabled.add(unit)
            case ("systemctl", "start", unit):
                self.active.add(unit)
            case ("systemctl", "disable", "--now", unit):
                self.enabled.discard(unit)
                self.active.discard(unit)
            case ("systemctl", "stop", unit):
                self.active.discard(unit)

    def make(self, path: Path, mode: int, uid: int, group: str) -> None:
        gid = self.groups[group].gr_gid
        self.directories[path] = os.stat_result((stat.S_IFDIR | mode, 0, 0, 2, uid, gid, 0, 0, 0, 0))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    fake = FakeHost()
    fake.passwd["root"] = pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/bash"))
    monkeypatch.setattr(accounts, "home_of", lambda user: Path("/home") / user.os_user if user.os_user else None)
    monkeypatch.setattr(apply, "check_accounts", lambda _users: [])
    return fake


def of(*people: User, kai: Kai | None = None, workspaces: tuple[Workspace, ...] = ()) -> Config:
    return Config(kai=kai or Kai(), users=people, workspaces=workspaces)


def carry_out(wanted: Config, host: FakeHost) -> list[str]:
    """Apply, and give what the operator was told."""
    assert apply.faults(wanted, host) == []
    said = []
    for step in apply.plan(wanted, host):
        said += step.text.splitlines()
        step.act()
    return said


def test_applying_twice_changes_nothing_the_second_time(host: FakeHost) -> None:
    wanted = of(ALICE, BOB)
    assert "make the account kai-w-bob" in carry_out(wanted, host)
    host.commands.clear()
    assert carry_out(wanted, host) == []
    assert host.commands == []


def test_a_user_gets_accounts_groups_directories_a_rule_and_a_socket(host: FakeHost) -> None:
    carry_out(of(ALICE, BOB), host)
    assert host.groups["kai-u-alice"].gr_mem == ["alice"]
    assert host.groups["kai-u-bob"].gr_mem == ["kai-w-bob"]
    assert sorted(host.groups["kai-model"].gr_mem) == ["alice", "kai-w-bob"]
    for name in ("kai-config", "kai-bot-clients", "kai-scheduler-clients", "kai-proxy-clients"):
        assert sorted(host.groups[name].gr_mem) == ["kai-u-alice", "kai-u-bob"]
    assert host.groups["kai-agent-clients"].gr_mem == []
    assert {"kai-agent@alice.socket", "kai-agent@bob.socket"} <= host.enabled & host.active
    assert host.modes[accounts.SUDOERS] == 0o440
    base = accounts.STATE / "bob"
    owners = {path.name: status.st_uid for path, status in host.directories.items() if path.parent == base}
    work, supervisor = host.passwd["kai-w-bob"].pw_uid, host.passwd["kai-u-bob"].pw_uid
    assert host.directories[base].st_uid == 0
    assert {name: owners[name] for name in ("work", "tmp")} == {"work": work, "tmp": work}
    assert {owners[name] for name in ("state", "history", "files", "memory")} == {supervisor}


def test_the_rule_allows_the_one_program_without_arguments_and_nothing_else(host: FakeHost) -> None:
    carry_out(of(ALICE, BOB), host)
    rules = [line for line in host.files[accounts.SUDOERS].splitlines() if line and line[0] != "#"]
    allowed = [line for line in rules if not line.startswith("Defaults")]
    assert allowed == [
        'kai-u-alice ALL=(alice) NOPASSWD: /opt/kai/current/bin/kai-inner ""',
        'kai-u-bob ALL=(kai-w-bob) NOPASSWD: /opt/kai/current/bin/kai-inner ""',
    ]
    assert "SETENV" not in host.files[accounts.SUDOERS]
    assert ("visudo", "-c", "-q", "-f") in host.commands


def test_rules_that_visudo_refuses_open_no_socket(host: FakeHost) -> None:
    host.visudo = False
    with pytest.raises(Failure):
        carry_out(of(ALICE), host)
    assert accounts.SUDOERS not in host.files
    assert host.enabled == set()


def test_every_directory_lies_below_one_that_is_roots(host: FakeHost) -> None:
    wanted = accounts.directories_of(BOB, "kai-w-bob")
    owner = {each.path: each.owner for each in wanted}
    assert all(owner.get(each.path.parent, "root") == "root" for each in wanted)
    modes = {each.path.name: each.mode for each in wanted}
    assert modes == {
        "bob": 0o750, "state": 0o700, "history": 0o2750, "files": 0o2750, "memory": 0o2770, "work": 0o700, "tmp": 0o700
    }  # fmt: skip


def test_received_files_are_kept_for_as_long_as_the_configuration_says_and_nothing_else_is_removed() -> None:
    def ages(retention: int) -> dict[str, str]:
        lines = accounts.tmpfiles(accounts.directories_of(BOB, "kai-w-bob", retention=retention)).splitlines()
        return {line.split()[1].rpartition("/")[2]: line.split()[5] for line in lines if line.startswith("d ")}

    kept = ages(0)
    assert kept["files"] == "-"
    assert ages(30) == {**kept, "files": "mM:30d"}


def test_a_user_who_is_gone_loses_door_rule_and_groups_but_no_data(host: FakeHost) -> None:
    carry_out(of(ALICE, BOB), host)
    host.active.add("kai-agent@bob.service")
    kept = dict(host.directories)
    said = carry_out(of(ALICE), host)
    assert "kai-agent@bob.socket" not in host.enabled | host.active
    assert "kai-agent@bob.service" not in host.active
    assert "kai-u-bob" not in host.files[accounts.SUDOERS]
    members = {member for group in host.groups.values() for member in group.gr_mem}
    assert not {"kai-u-bob", "kai-w-bob"} & members
    assert host.directories == kept
    assert {"kai-u-bob", "kai-w-bob"} <= set(host.passwd)
    assert said.index("write /etc/sudoers.d/kai") < said.index("stop kai-agent@bob.service")
    assert carry_out(of(ALICE), host) == []


def test_a_user_who_comes_back_gets_the_old_account_again(host: FakeHost) -> None:
    carry_out(of(ALICE, BOB), host)
    carry_out(of(ALICE), host)
    assert "make the account kai-u-bob" not in carry_out(of(ALICE, BOB), host)
    assert "kai-agent@bob.socket" in host.active


def test_the_work_of_one_account_is_not_passed_on_to_another(host: FakeHost) -> None:
    carry_out(of(ALICE), host)
    moved = of(User(telegram_id=1, name="alice", os_user="carol"))
    found = apply.faults(moved, host)
    assert len(found) == 2
    assert all("mv /var/lib/kai/users/alice/" in fault for fault in found)


def test_a_changed_account_loses_its_groups_and_its_running_agent(host: FakeHost) -> None:
    carry_out(of(ALICE), host)
    host.active.add("kai-agent@alice.service")
    for name in ("work", "tmp"):
        del host.directories[accounts.STATE / "alice" / name]
    said = carry_out(of(User(telegram_id=1, name="alice", os_user="carol")), host)
    assert "stop kai-agent@alice.service, whose account has changed" in said
    assert host.groups["kai-u-alice"].gr_mem == ["carol"]
    assert host.groups["kai-model"].gr_mem == ["carol"]


def test_a_member_that_somebody_added_to_a_users_group_is_taken_out(host: FakeHost) -> None:
    carry_out(of(ALICE), host)
    host.groups["kai-u-alice"].gr_mem.append("carol")
    assert carry_out(of(ALICE), host) == ["take carol out of the group kai-u-alice"]


@pytest.mark.parametrize("mark", ["", "Kai supervisor of bob", "Kai supervisor"])
def test_an_account_that_kai_did_not_make_is_refused(host: FakeHost, mark: str) -> None:
    host.add("kai-u-alice", 1050, mark)
    (fault,) = apply.faults(of(ALICE), host)
    assert "kai-u-alice exists and Kai didn't make it" in fault


def test_a_marked_account_with_uid_0_is_refused(host: FakeHost) -> None:
    host.add("kai-u-alice", 0, "Kai supervisor of alice")
    assert apply.faults(of(ALICE), host) != []


def test_a_group_that_kai_did_not_make_is_refused(host: FakeHost) -> None:
    host.groups["kai-w-bob"] = grp.struct_group(("kai-w-bob", "x", 1060, []))
    (fault,) = apply.faults(of(BOB), host)
    assert "a group kai-w-bob exists" in fault


def test_a_file_in_the_place_of_a_directory_is_refused(host: FakeHost) -> None:
    carry_out(of(BOB), host)
    work = accounts.STATE / "bob/work"
    host.directories[work] = os.stat_result((stat.S_IFLNK | 0o777, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    assert apply.faults(of(BOB), host) == [f"{work} is not a directory: move it away and apply again"]


def test_a_host_without_sudo_is_refused(host: FakeHost) -> None:
    del host.files[Path("/etc/sudoers")]
    (fault,) = apply.faults(of(ALICE), host)
    assert "install sudo" in fault


def test_a_host_without_kais_accounts_is_sent_to_the_installer(host: FakeHost) -> None:
    del host.groups["kai-config"]
    (fault,) = apply.faults(of(ALICE), host)
    assert "install.sh" in fault


@pytest.mark.parametrize("name", ["ALL", "%wheel", "a,b", "a b", "#0", "a" * 32, "alice!"])
def test_an_account_name_that_means_something_else_to_sudo_is_refused(host: FakeHost, name: str) -> None:
    strange = User(telegram_id=1, name="alice", os_user=name)
    assert any(name in fault for fault in apply.faults(of(strange), host))
    with pytest.raises(ValueError, match="sudoers"):
        accounts.sudoers(accounts.sudoers_template(), [strange])


def test_no_socket_is_opened_while_kai_is_stopped(host: FakeHost) -> None:
    host.active.clear()
    carry_out(of(ALICE), host)
    assert host.enabled == {"kai-agent@alice.socket", "kai-agent-api@alice.socket"}
    assert host.active == set()


def test_a_bot_that_its_configuration_had_stopped_is_started_after_the_repair(host: FakeHost) -> None:
    host.failed.add("kai-bot.service")
    apply.reload(host)
    assert ("systemctl", "start", "kai-bot.service") in host.commands
    host.commands.clear()
    host.active.clear()
    apply.reload(host)
    assert ("systemctl", "start", "kai-bot.service") not in host.commands


def test_a_unit_shows_its_users_home_and_workspaces_and_no_other_home(host: FakeHost) -> None:
    user = User(telegram_id=1, name="alice", os_user="alice", home_workspace="~/notes", workspace_base="/data/my work")
    text = accounts.drop_in(of(user, BOB), user)
    assert [line for line in text.splitlines() if "BindPaths" in line] == [
        'BindPaths="-/data/my work"',
        'BindPaths="-/home/alice"',
    ]
    assert "BindPaths" not in accounts.drop_in(of(user, BOB), BOB)


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ({}, "/srv/team/alice"),
        ({"/srv/team": PEOPLE["alice"]}, "/srv/team"),
        ({"/srv": PEOPLE["alice"], "/srv/team": PEOPLE["alice"]}, "/srv"),
    ],
)
def test_the_unit_shows_the_directory_in_which_an_agent_could_exchange_its_workspaces(
    host: FakeHost, own: dict[str, int], shown: str
) -> None:
    """systemd would follow a link that the agent leaves in the place of one, to /proc for instance."""
    for path in ("/home", "/srv", "/srv/team"):
        host.make(Path(path), 0o755, own.get(path, 0), "alice")
    user = User(telegram_id=1, name="alice", os_user="alice", workspace_base="/srv/team/alice")
    carry_out(of(user), host)
    lines = host.files[accounts.DROPINS / "kai-agent@alice.service.d/kai.conf"].splitlines()
    assert [line for line in lines if "BindPaths" in line] == ['BindPaths="-/home/alice"', f'BindPaths="-{shown}"']


def test_a_workspace_whose_place_is_not_there_yet_is_shown_from_the_first_directory_that_root_must_make(
    host: FakeHost,
) -> None:
    for path in ("/home", "/srv"):
        host.make(Path(path), 0o755, 0, "alice")
    user = User(telegram_id=1, name="alice", os_user="alice", workspace_base="/srv/team/alice")
    carry_out(of(user), host)
    assert 'BindPaths="-/srv/team"\n' in host.files[accounts.DROPINS / "kai-agent@alice.service.d/kai.conf"]


@pytest.mark.parametrize(("owner", "mode"), [(PEOPLE["carol"], 0o755), (0, 0o1777), (0, 0o775)])
def test_a_workspace_that_a_stranger_could_exchange_is_refused(host: FakeHost, owner: int, mode: int) -> None:
    host.make(Path("/srv"), 0o755, 0, "alice")
    host.make(Path("/srv/team"), mode, owner, "alice")
    user = User(telegram_id=1, name="alice", os_user="alice", workspace_base="/srv/team/alice")
    (fault,) = apply.faults(of(user), host)
    assert fault.startswith("alice: /srv/team/alice: an account other than root and alice may write")


def test_limits_and_a_long_drain_reach_the_unit(host: FakeHost) -> None:
    user = User(telegram_id=1, name="alice", limits=Limits(memory="2G", tasks=50, cpu_weight=20))
    lines = accounts.drop_in(of(user, kai=Kai(drain=600)), user).splitlines()
    assert {"MemoryMax=2G", "TasksMax=50", "CPUWeight=20", "TimeoutStopSec=630"} <= set(lines)
    assert "TimeoutStopSec" not in accounts.drop_in(of(BOB), BOB)


def test_a_path_that_a_unit_file_cannot_name_is_refused(host: FakeHost) -> None:
    user = User(telegram_id=1, name="alice", os_user="alice", workspace_base='/srv/a"b')
    (fault,) = apply.faults(of(user), host)
    assert "can't name this path" in fault


def test_the_unit_covers_the_default_drain() -> None:
    unit = (Path(__file__).parents[2] / "units/kai-agent@.service").read_text()
    assert Kai().drain <= accounts.DRAIN_IN_UNIT
    assert f"TimeoutStopSec={accounts.DRAIN_IN_UNIT + accounts.MARGIN}\n" in unit


# ---- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def etc(tmp_path: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users.yaml").write_text("users:\n  - telegram_id: 1\n    name: alice\n    os_user: alice\n")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(users, "Host", lambda: host)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    users.register(parser.add_subparsers())
    arguments = parser.parse_args(["users", *words])
    return int(arguments.run(arguments))


def test_a_dry_run_changes_nothing(etc: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("apply", "--dry-run") == 0
    assert "would make the account kai-u-alice" in capsys.readouterr().out
    assert host.commands == []
    assert accounts.SUDOERS not in host.files


def test_an_added_user_is_in_the_file_and_has_his_accounts(etc: Path, host: FakeHost) -> None:
    assert command("add", "2", "bob", "--admin") == 0
    assert [(user.name, user.role) for user in load(etc).users] == [("alice", "user"), ("bob", "admin")]
    assert "kai-w-bob" in host.passwd


def test_an_addition_that_cannot_be_applied_leaves_the_file_alone(etc: Path, host: FakeHost) -> None:
    before = (etc / "users.yaml").read_text()
    host.add("kai-w-bob", 1050)
    with pytest.raises(Failure, match="Kai didn't make it"):
        command("add", "2", "bob")
    assert (etc / "users.yaml").read_text() == before


def test_a_first_user_who_cannot_be_applied_leaves_no_file(etc: Path, host: FakeHost) -> None:
    (etc / "users.yaml").unlink()
    host.add("kai-w-bob", 1050)
    with pytest.raises(Failure, match="Kai didn't make it"):
        command("add", "2", "bob")
    assert not (etc / "users.yaml").exists()


def test_a_users_file_does_not_silently_replace_the_short_form(etc: Path) -> None:
    (etc / "users.yaml").unlink()
    (etc / "kai.yaml").write_text("allowed_user_ids: [1]\n")
    with pytest.raises(Failure, match="allowed_user_ids"):
        command("add", "2", "bob")
    assert not (etc / "users.yaml").exists()


def test_a_removed_user_is_closed_out(etc: Path, host: FakeHost) -> None:
    command("add", "2", "bob")
    assert command("remove", "bob") == 0
    assert [user.name for user in load(etc).users] == ["alice"]
    assert "kai-agent@bob.socket" not in host.active


def test_a_user_whose_workspaces_are_still_configured_is_not_half_removed(etc: Path, host: FakeHost) -> None:
    command("add", "2", "bob")
    (etc / "workspaces.yaml").write_text("/var/lib/kai/users/bob/work: {budget: 1}\n")
    with pytest.raises(Failure, match=r"workspaces\.yaml.*/bob/work"):
        command("remove", "bob")
    assert [user.name for user in load(etc).users] == ["alice", "bob"]
    assert "kai-agent@bob.socket" in host.active


def test_the_list_says_who_is_reachable(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("list")
    assert re.search(r"alice +1 +user +alice +not applied: kai users apply", capsys.readouterr().out)
    command("apply")
    capsys.readouterr()
    command("list")
    assert re.search(r"alice +1 +user +alice +idle", capsys.readouterr().out)


# ---- login and settings ---------------------------------------------------------------------------------------


def test_a_key_is_one_line_and_is_never_shown_when_it_is_not(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-ant-1\n")
    assert login.read_key(str(file)) == "sk-ant-1"
    for text in ("", "two words", "two\nlines", "é", "x" * 5000):
        file.write_text(text)
        with pytest.raises(Failure) as caught:
            login.read_key(str(file))
        assert not text or text not in str(caught.value)


def test_what_runs_as_an_account_sees_nothing_of_roots_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_ROOT", "x")
    words = login.as_account(pwd.struct_passwd(("alice", "x", 1001, 1001, "", "/home/alice", "/bin/bash")))
    assert words[: words.index("-i") + 1] == ["sudo", "-n", "-H", "-u", "alice", "--", "/usr/bin/env", "-i"]
    assert "HOME=/home/alice" in words
    assert not any("SECRET_OF_ROOT" in word for word in words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "telegram:\n  mode: polling # stays\n",
        "telegram:\n  api_base: https://old\nbudget: 3.0\n",
    ],
)
def test_setting_a_key_changes_that_key_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kai.yaml"
    file.write_text(text)
    (tmp_path / "users.yaml").write_text("users: [{telegram_id: 1, name: alice}]\n")
    before = load(tmp_path).kai
    setting.put(file, "telegram.api_base", "http://127.0.0.1:80")
    after = load(tmp_path).kai
    assert after.telegram.api_base == "http://127.0.0.1:80"
    assert (after.budget, after.telegram.mode) == (before.budget, before.telegram.mode)
    assert [line for line in text.splitlines() if "#" in line] == [
        line for line in file.read_text().splitlines() if "#" in line
    ]


def test_the_example_can_be_set_and_set_again(tmp_path: Path) -> None:
    file = tmp_path / "kai.yaml"
    file.write_text((Path(__file__).parents[2] / "etc/kai.yaml").read_text())
    for words in (["claude"], ["/opt/goose", "acp"]):
        setting.put(file, "agent.command", words)
    (tmp_path / "users.yaml").write_text("users: [{telegram_id: 1, name: alice}]\n")
    assert load(tmp_path).kai.agent.command == ("/opt/goose", "acp")


def test_a_file_in_another_style_is_left_to_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "kai.yaml"
    file.write_text("{telegram: {mode: polling}}\n")
    with pytest.raises(ConfigError, match="by hand"):
        setting.put(file, "telegram.api_base", "http://127.0.0.1:80")
    assert file.read_text() == "{telegram: {mode: polling}}\n"
    assert config.check(tmp_path) != []  # no users: the file itself has no fault
