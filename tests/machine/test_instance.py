"""The agent instance on a server: workspaces, approvals, memory, choices and /stop, through sudo and the real CLI."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from kai.demo.botapi.views import MessageView
from tests.machine.host import USERS, Host, host

BASE = "/home/alice/projects"
ACCESS = f"""
users:
  - {{telegram_id: {USERS["alice"]}, name: alice, os_user: alice, role: admin, max_budget: 500,
     limits: {{memory: 3G, tasks: 400}}}}
  - {{telegram_id: {USERS["bob"]}, name: bob, os_user: bob, approvals: ask}}
  - {{telegram_id: {USERS["carol"]}, name: carol}}
"""
SITE = f"""
workspaces:
  {BASE}/site:
    env: {{SITE_SECRET: of-alices-site}}
    env_file: ~/projects/site/.env
    system_prompt: The site is a pony farm.
    budget: 250
"""


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian; alice has a base for workspaces, bob is asked before each command."""
    with host(suite) as made:
        made.first_install()
        made.configure(proxy={"model": {"url": made.model.address}}, workspace_base="~/projects", budget=400)
        made.machine.run(["install", "-d", "-o", "alice", "-g", "alice", BASE, f"{BASE}/site"])
        made.machine.run(["install", "-d", "-o", "bob", "-g", "bob", "/home/bob/projects"])
        made.machine.write("/etc/kai/users.yaml", ACCESS, mode=0o640)
        made.machine.write("/etc/kai/workspaces.yaml", SITE, mode=0o640)
        made.machine.run("chgrp kai-config /etc/kai/users.yaml /etc/kai/workspaces.yaml")
        made.machine.write(f"{BASE}/site/.env", "FROM_FILE='a b'\n")
        made.machine.run("kai check && kai users apply && systemctl reload kai-bot")
        yield made


def question(kai: Host, user: str, contains: str, after: int) -> MessageView:
    """A question with its three buttons."""

    def look() -> MessageView | None:
        for message in kai.telegram.messages(USERS[user]):
            asks = "Deny" in str(message.buttons)
            if message.by_bot and message.message_id > after and asks and contains in (message.text or ""):
                return message
        return None

    return kai.telegram.wait_for(look, timeout=60)


def test_a_new_workspace_is_the_accounts_own_and_a_repository(kai: Host) -> None:
    assert "shop" in kai.ask("alice", "/workspace new shop", "shop")
    owner = kai.machine.run(["stat", "-c", "%U:%G %F", f"{BASE}/shop", f"{BASE}/shop/.git"]).out.splitlines()
    assert owner == ["alice:alice directory", "alice:alice directory"]
    assert f"{BASE}/shop" in kai.ask("alice", "run: pwd", f"{BASE}/shop")


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc", "~/x", "..", "shop/../../..", "out", "a\nb", ".ssh", "-rf", "x" * 300, "no-such"]
)
def test_a_name_that_is_no_workspace_is_refused_and_nothing_moves(kai: Host, name: str) -> None:
    kai.machine.run(f"ln -sfn /etc {BASE}/out")
    after = kai.say("alice", f"/workspace {name}")
    kai.answer("alice", "", after=after)
    assert f"{BASE}/shop" in kai.ask("alice", "run: pwd", "/")


def test_a_workspace_has_its_own_session_environment_and_instructions(kai: Host) -> None:
    kai.ask("alice", "say: this is the shop", "this is the shop")
    kai.ask("alice", "/workspace site", "site")
    told = kai.ask("alice", "run: echo $SITE_SECRET/$FROM_FILE", "/")
    assert "of-alices-site/a b" in told
    assert "this is the shop" not in kai.ask("alice", "echo-history", "SITE_SECRET")
    assert "pony farm" in kai.ask("alice", "echo-system", "workspace")
    kai.ask("alice", "/workspace shop", "shop")
    assert "this is the shop" in kai.ask("alice", "echo-history", "shop")
    assert "of-alices-site" not in kai.ask("alice", "run: echo [$SITE_SECRET]", "[")
    kai.ask("alice", "/workspace home", "home")


def test_a_workspaces_environment_is_nobody_elses_to_see(kai: Host) -> None:
    kai.ask("alice", "/workspace site", "site")
    kai.say("alice", "run: sleep 8; echo slept")
    kai.growing("alice", "sleep 8")
    everywhere = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /etc/kai/* 2>/dev/null | tr '\\0' '\\n'"
    for account in ("bob", "kai-w-carol"):
        seen = kai.machine.run(everywhere, user=account, check=False).out
        assert "of-alices-site" not in seen
    kai.answer("alice", "slept")
    journal = kai.machine.run("journalctl --no-pager -o export").out
    assert "of-alices-site" not in journal
    kai.ask("alice", "/workspace home", "home")


def test_a_question_runs_nothing_until_it_is_allowed(kai: Host) -> None:
    after = kai.say("bob", "run: touch asked-1 && echo made")
    asked = question(kai, "bob", "touch asked-1", after)
    home = kai.machine.run("find / -xdev -name 'asked-*' 2>/dev/null", check=False).out
    assert home == ""
    kai.telegram.press(USERS["bob"], asked.message_id, label="Allow once")
    assert "made" in (kai.answer("bob", "made", after=after).text or "")
    after = kai.say("bob", "run: touch asked-2")
    asked = question(kai, "bob", "touch asked-2", after)
    kai.telegram.press(USERS["bob"], asked.message_id, label="Deny")
    kai.answer("bob", "denied", after=after)
    found = kai.machine.run("find / -xdev -name 'asked-*' 2>/dev/null", check=False).out.split()
    assert [path.rpartition("/")[2] for path in found] == ["asked-1"]


def test_a_question_outlives_the_bot_and_another_users_press_does_nothing(kai: Host) -> None:
    after = kai.say("bob", "run: touch asked-3 && echo made-3")
    asked = question(kai, "bob", "touch asked-3", after)
    data = next(text for text in re.findall(r"approve:[^'\"]+", str(asked.reply_markup)) if text.endswith("once"))
    mine = kai.answer("alice", "mine", after=kai.say("alice", "say: mine"))
    kai.telegram.press(USERS["alice"], mine.message_id, data=data)
    kai.machine.systemctl("restart", "kai-bot")
    kai.wait_status("polling as @")
    assert kai.machine.run("find / -xdev -name asked-3 2>/dev/null", check=False).out == ""
    kai.telegram.press(USERS["bob"], asked.message_id, label="Allow once")
    kai.answer("bob", "made-3", after=after)


def test_only_the_operator_loosens_approvals(kai: Host) -> None:
    assert "operator" in kai.ask("bob", "/settings approvals auto", "approvals")
    table = kai.machine.run(["kai", "settings", "bob", "approvals", "auto"]).out
    assert re.search(r"approvals +auto +the user's choice", table)
    after = kai.say("bob", "run: echo unasked")
    kai.answer("bob", "unasked", after=after)
    kai.machine.run(["kai", "settings", "bob", "reset", "approvals"])


def test_memory_is_the_agents_to_write_and_history_is_not(kai: Host) -> None:
    users = "/var/lib/kai/users"
    kai.ask("carol", f"run: echo 'carol likes ponies' > {users}/carol/memory/MEMORY.md; echo wrote", "wrote")
    assert "carol likes ponies" in kai.ask("carol", "/memory", "ponies")
    said = kai.ask("carol", f"run: cat {users}/carol/history/*.jsonl | wc -l; echo x >> {users}/carol/history/x; "
                   f"touch {users}/carol/history/y; ls {users}", "carol")  # fmt: skip
    assert "Permission denied" in said
    assert "alice" not in said.replace("Permission", "")
    mode = kai.machine.run(["stat", "-c", "%U %a", f"{users}/carol/history"]).out.split()
    assert mode == ["kai-u-carol", "2750"]


def test_an_edited_identity_holds_from_the_next_session_without_a_restart(kai: Host) -> None:
    pid = kai.machine.systemctl("show", "-P", "MainPID", "kai-bot").out
    kai.ask("carol", "say: before", "before")
    kai.machine.run("printf '\\nYou are a lighthouse keeper.\\n' >> /etc/kai/identity.md")
    kai.ask("carol", "/new", "fresh session")
    kai.ask("carol", "echo-system", "lighthouse keeper")
    assert kai.machine.systemctl("show", "-P", "MainPID", "kai-bot").out == pid


def test_the_session_goes_on_after_a_change_of_model_and_a_restart_of_the_unit(kai: Host) -> None:
    kai.ask("alice", "say: remember the heron", "heron")
    kai.ask("alice", "/model sonnet", "sonnet")
    assert "heron" in kai.ask("alice", "echo-history", "heron")
    assert "sonnet" in [request.body["model"] for request in kai.model.requests if request.body][-1]
    kai.machine.systemctl("restart", "kai-agent@alice")
    assert "heron" in kai.ask("alice", "echo-history", "heron")
    kai.ask("alice", "/model reset", "model")


def test_stop_ends_a_command_of_the_agent_and_leaves_no_process(kai: Host) -> None:
    after = kai.say("alice", "run: echo start; sleep 4711")
    kai.growing("alice", "sleep 4711")
    began = time.monotonic()
    kai.say("alice", "/stop")
    kai.answer("alice", "Stopped", after=after)
    assert time.monotonic() - began < 15
    kai.machine.wait_for(lambda: kai.machine.run("pgrep -f 'sleep 4711'", check=False).out == "", 10, what="it is gone")
    assert "still here" in kai.ask("alice", "say: still here", "still here")


def test_an_agent_killed_for_its_memory_leaves_the_user_told_and_nothing_behind(kai: Host) -> None:
    shown = kai.machine.systemctl("show", "-p", "MemoryMax,TasksMax,OOMPolicy", "kai-agent@alice").out.split()
    assert sorted(shown) == ["MemoryMax=3221225472", "OOMPolicy=continue", "TasksMax=400"]
    after = kai.say("alice", "run: setsid sleep 4712 & sleep 4713")
    kai.growing("alice", "sleep 4713")
    kai.machine.run("pkill -KILL -u alice -x claude")
    told = kai.answer("alice", "SIGKILL", after=after).text or ""
    assert "killed" in told
    assert "back again" in kai.ask("alice", "say: back again", "back again")
    assert kai.machine.run("pgrep -f 'sleep 471[23]'", check=False).out == ""


def test_the_environment_that_a_tool_sees_holds_no_secret(kai: Host) -> None:
    told = kai.ask("alice", "run: env | sort", "HOME=")
    print(told)
    assert "KAI_API=/run/kai/api/alice.sock" in told
    names = set(re.findall(r"^([A-Z_]+)=", told, re.MULTILINE)) - {"KAI_API"}
    assert {"HOME", "PATH", "USER"} <= names
    assert not {name for name in names if re.search(r"KAI|TELEGRAM|CREDENTIAL|LISTEN|NOTIFY|SUDO_COMMAND", name)}
    assert re.findall(r"sk-ant|7654321:", told) == []
