"""The delivery contract on a server: files in and out, kills under systemd, an upgrade in mid-turn."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator

import pytest

from kai.demo.botapi.images import grey_png
from kai.demo.botapi.views import MessageView
from tests.machine.host import USERS, Host, host
from tests.messages_api import Reply, Text, Tool, Turn

KILLS = 40
ROUNDS = 12
ACCESS = f"""
users:
  - {{telegram_id: {USERS["alice"]}, name: alice, os_user: alice, role: admin, max_budget: 500}}
  - {{telegram_id: {USERS["bob"]}, name: bob, os_user: bob, approvals: ask}}
  - {{telegram_id: {USERS["carol"]}, name: carol}}
"""
PNG = grey_png(32, 32)
FILES = "/var/lib/kai/users/alice/files"


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian; bob is asked before each command."""
    with host(suite) as made:
        made.first_install()
        made.configure(proxy={"model": {"url": made.model.address}}, budget=400, file_retention_days=30)
        made.machine.write("/etc/kai/users.yaml", ACCESS, mode=0o640)
        made.machine.run("chgrp kai-config /etc/kai/users.yaml && kai check && kai users apply")
        made.machine.run("systemctl reload kai-bot")
        yield made


def shown(kai: Host, user: str, after: int = 0) -> list[MessageView]:
    return [m for m in kai.telegram.messages(USERS[user]) if m.by_bot and m.message_id > after]


def with_button(kai: Host, user: str, label: str, after: int, timeout: float = 60) -> MessageView:
    def look() -> MessageView | None:
        return next((m for m in shown(kai, user, after) if label in str(m.buttons)), None)

    return kai.telegram.wait_for(look, timeout=timeout)


# ---- files ----


def looks_at_the_photo(turn: Turn) -> Reply | None:
    """The model's part: the image came as a block, and its file is looked at by a tool."""
    if turn.tool_result is not None and FILES in turn.tool_result:
        return Text(f"SEEN {turn.tool_result}")
    blocks = [
        block
        for message in turn.body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
    ]
    path = re.search(rf"\[File: ({FILES}/[^\]]+?) \(image/png", "\n".join(turn.history))
    if path is None or turn.tool_result is not None:
        return None
    kinds = {block["type"] for block in blocks}
    command = f"stat -c '%n %U %a' {path[1]}"
    return Tool("Bash", {"command": command}) if "image" in kinds else Text(f"only {kinds}")


def test_a_photo_reaches_the_model_and_the_agent_can_read_it(kai: Host) -> None:
    kai.model.rules.append(looks_at_the_photo)
    photo = kai.telegram.put_file(PNG, name="dot.png", mime="image/png", kind="photo")
    after = kai.telegram.say(USERS["alice"], "what is this?", photo=photo).message_id
    answer = kai.answer("alice", "", after=after)
    kai.model.rules.clear()
    assert re.search(rf"SEEN {FILES}/\S+ kai-u-alice 640", answer.text or "")


def test_no_other_account_reads_a_received_file(kai: Host) -> None:
    for account in ("bob", "kai-w-carol", "nobody"):
        found = kai.machine.run(f"find {FILES} -type f", user=account, check=False)
        assert found.code != 0
        assert not found.out


def test_a_file_is_sent_with_the_agents_own_rights(kai: Host) -> None:
    work = "/var/lib/kai/users/alice/work"
    kai.machine.run(f"printf report > {work}/report.txt && chown alice: {work}/report.txt")
    after = kai.say("alice", "say: before the file")
    kai.answer("alice", "before the file", after=after)
    kai.machine.run(["kai", "send-file", "--user", "alice", "--caption", "as asked", "report.txt"])

    def document() -> MessageView | None:
        return next((m for m in shown(kai, "alice", after) if "document" in m.wire), None)

    sent = kai.telegram.wait_for(document, timeout=30)
    assert sent.text == "as asked"
    assert kai.telegram.file(sent.wire["document"]["file_id"]) == b"report"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        ("ln -sfn /etc/shadow {work}/out", "out"),
        ("ln -sfn ../history {work}/out", "out"),
        ("true", "/etc/shadow"),
        ("true", "../../bob/work"),
        ("true", "../memory/MEMORY.md"),
        ("mkfifo -m 666 {work}/pipe", "pipe"),
        ("printf x > {work}/hidden && chmod 000 {work}/hidden && chown root: {work}/hidden", "hidden"),
    ],
)
def test_a_file_that_is_not_the_agents_to_send_is_refused_with_words(kai: Host, make: str, name: str) -> None:
    work = "/var/lib/kai/users/alice/work"
    kai.machine.run(make.format(work=work))
    sent = len(kai.telegram.calls("sendDocument"))
    refused = kai.machine.run(["kai", "send-file", "--user", "alice", name], check=False, timeout=60)
    assert refused.code != 0
    assert re.fullmatch(rf"kai: path: {re.escape(name)}: .+\n", refused.err)
    assert len(kai.telegram.calls("sendDocument")) == sent
    kai.machine.run(f"rm -rf {work}/out {work}/pipe {work}/hidden")


def test_received_files_are_removed_when_they_are_old_and_no_others(kai: Host) -> None:
    (path, *_) = kai.machine.run(f"find {FILES} -type f").out.split()
    kai.machine.run(f"touch -d '40 days ago' {path}")
    kept = "/var/lib/kai/users/alice/memory/old"
    kai.machine.run(f"touch -d '40 days ago' {kept}")
    kai.machine.run("systemctl start systemd-tmpfiles-clean.service")
    assert kai.machine.run(f"test -e {path}", check=False).code == 1
    kai.machine.run(f"test -e {kept}")


# ---- crashes ----


def test_a_turn_that_was_cut_off_goes_on_when_the_user_says_so(kai: Host) -> None:
    after = kai.say("alice", "slow: 20 " + " ".join(f"step{n}" for n in range(1, 120)))
    kai.growing("alice", "step9")
    pid = kai.machine.systemctl("show", "-P", "MainPID", "kai-agent@alice").out.strip()
    kai.machine.run(["kill", "-9", pid])
    cut = with_button(kai, "alice", "Continue", after)
    assert "step3" in (cut.text or "")
    kai.telegram.press(USERS["alice"], cut.message_id, label="Continue")
    continued = kai.answer("alice", "step119", after=cut.message_id, timeout=90)
    assert continued.message_id != cut.message_id
    assert with_button(kai, "alice", "", after).buttons == [], "the buttons are gone"


def test_kills_under_systemd_lose_and_double_nothing(kai: Host) -> None:
    """SIGKILL of the bot and the supervisors at any moment; systemd alone brings them back."""
    chance = random.Random(4)
    work = {"alice": "/var/lib/kai/users/alice/work", "carol": "/var/lib/kai/users/carol/work"}
    said: dict[str, list[str]] = {"alice": [], "carol": []}
    first = {user: kai.say(user, "say: the sweep begins") for user in said}
    for user in said:
        kai.answer(user, "the sweep begins", after=first[user])
    units = ["kai-bot", "kai-agent@alice", "kai-agent@carol"]
    for number in range(KILLS):
        if number % (KILLS // ROUNDS) == 0:
            for user, marks in said.items():
                mark = f"mark-{user}-{number}"
                marks.append(mark)
                kai.say(user, f"run: echo {mark} >> runs.txt; echo {mark}")
        time.sleep(chance.uniform(0.02, 0.6))
        kai.machine.systemctl("kill", "--signal=KILL", "--kill-whom=main", chance.choice(units), check=False)
    kai.machine.systemctl("reset-failed", check=False)
    kai.machine.systemctl("start", "kai.target")

    def settled() -> bool:
        told = {user: "\n".join(m.text or "" for m in shown(kai, user, first[user])) for user in said}
        waiting = kai.machine.run(["kai", "queue"], check=False).out
        return (
            "running" not in waiting
            and "queued" not in waiting
            and all(marks[-1] in told[user] or "cut off" in told[user] for user, marks in said.items())
        )

    kai.machine.wait_for(settled, 120, what="all is worked on")
    for user, marks in said.items():
        runs = kai.machine.run(f"find {work[user]} -name runs.txt -exec cat {{}} +", check=False).out.split()
        answers = [m.text or "" for m in shown(kai, user, first[user])]
        cut = sum("cut off" in text for text in answers)
        doubled = [mark for mark in marks if runs.count(mark) > 1]
        lost = [mark for mark in marks if not any(re.search(rf"\b{mark}$", text, re.M) for text in answers)]
        twice = [mark for mark in marks if sum(bool(re.search(rf"\b{mark}$", t, re.M)) for t in answers) > 1]
        assert doubled == []
        assert twice == []
        assert len(lost) <= cut, (lost, answers)


# ---- upgrade ----


def test_an_upgrade_in_mid_turn_loses_no_turn_no_queue_and_no_question(kai: Host) -> None:
    before = kai.machine.run("readlink -f /opt/kai/current").out.strip()
    running = kai.say("alice", "slow: 40 " + " ".join(f"part{n}" for n in range(1, 80)))
    kai.growing("alice", "part2")
    waiting = kai.say("alice", "say: waited through the upgrade")
    asked = kai.say("bob", "run: touch asked && echo allowed-after-the-upgrade")
    question = with_button(kai, "bob", "Allow once", asked)
    kai.machine.run(
        'sed -i -E \'s/^(__version__ = "[^"]*)"/\\1.post1"/\' kai/__init__.py && grep -n version kai/__init__.py',
        cwd="/root/kai",
    )
    kai.install()
    assert kai.machine.run("readlink -f /opt/kai/current").out.strip() != before
    answer = kai.answer("alice", "part79", after=running, timeout=120)
    assert "part1 " in (answer.text or "")
    kai.answer("alice", "waited through the upgrade", after=waiting, timeout=120)
    kai.telegram.press(USERS["bob"], question.message_id, label="Allow once")
    kai.answer("bob", "allowed-after-the-upgrade", after=asked, timeout=60)
    kai.ask("bob", "say: on the new version", "on the new version")
    finals = [m for m in shown(kai, "alice", running) if "part79" in (m.text or "")]
    assert len(finals) == 1

    def agents() -> bool:
        programs = kai.machine.run("readlink -f /proc/$(pgrep -u kai-u-bob -f kai.agent.main)/exe || true").out
        return before not in programs

    kai.machine.wait_for(agents, 60, what="no agent of the old version is left after its turn")
