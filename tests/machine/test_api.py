"""What the real Claude Code CLI can do through Kai on a server: remind, send, and nothing in another user's name."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.machine.host import KEY, TOKEN, USERS, Host, host
from tests.machine.test_services import ECHO

ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(20)
try:
    s.connect(sys.argv[1]); s.sendall(b"GET /health HTTP/1.1\\r\\nHost: kai\\r\\nConnection: close\\r\\n\\r\\n")
    print(s.recv(65536).decode() or "closed")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian; the tests of this file share it, in their order."""
    with host(suite) as made:
        made.first_install()
        made.configure(proxy={"model": {"url": made.model.address}})
        made.wait_status("polling as @")
        yield made


def tool(called: str, /, **arguments: object) -> str:
    """What the scripted model is told to call."""
    return f"call: mcp__kai__{called} {json.dumps(arguments)}"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(int(time.time() + seconds) + 1, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def health(kai: Host, account: str, user: str = "alice") -> str:
    said = kai.machine.run(["python3", "-I", "-c", ASK, f"/run/kai/api/{user}.sock"], user=account).out
    return said.split("\n")[0].strip()


def test_a_socket_listens_and_no_process_runs(kai: Host) -> None:
    for user in USERS:
        assert kai.active(f"kai-agent-api@{user}.socket") == "active"
        assert kai.active(f"kai-agent@{user}.service") == "inactive"
    shown = kai.machine.run("stat -c '%a %U %G' /run/kai/api /run/kai/api/alice.sock /run/kai/api/carol.sock").out
    assert shown.splitlines() == ["755 root root", "660 root kai-u-alice", "660 root kai-u-carol"]


def test_only_the_users_own_agent_can_open_it(kai: Host) -> None:
    said = {
        account: health(kai, account)
        for account in ("alice", "root", "bob", "kai-w-carol", "kai-u-bob", "kai-bot", "kai-scheduler", "nobody")
    }
    assert said == {
        "alice": "HTTP/1.1 200", "root": "HTTP/1.1 200",
        **dict.fromkeys(("bob", "kai-w-carol", "kai-u-bob", "kai-bot", "kai-scheduler", "nobody"), "PermissionError"),
    }  # fmt: skip


def test_remind_me_becomes_a_timer_and_arrives(kai: Host) -> None:
    due = moment(20)
    said = kai.ask(
        "alice", tool("schedule_job", prompt="The tea!", schedule_type="once", schedule_data={"run_at": due}), "job_id"
    )
    number = json.loads(said)["job_id"]
    assert f"kai-job@{number}.timer" in kai.machine.run("systemctl list-timers --no-pager 'kai-job@*'").out
    kai.answer("alice", "⏰ The tea!", timeout=60)
    timers = "systemctl list-timers --no-pager 'kai-job@*'"
    kai.machine.wait_for(lambda: f"kai-job@{number}" not in kai.machine.run(timers).out, 20, what="its timer goes")


def test_send_me_that_file_arrives(kai: Host) -> None:
    kai.ask("alice", "run: echo 1,2,3 > plot.csv; echo WRITTEN", "WRITTEN")
    kai.ask("alice", tool("send_file", path="plot.csv", caption="here it is"), "sent")
    kai.answer("alice", "here it is")
    assert "path: " in kai.ask("alice", tool("send_file", path="/etc/kai/kai.yaml"), "path: ")
    assert "path: " in kai.ask("alice", tool("send_file", path="/var/lib/kai/users/bob/files/x"), "path: ")


def test_the_command_does_the_same_in_the_agents_shell(kai: Host) -> None:
    said = kai.ask(
        "bob", "run: kai jobs add --prompt tea --every 1h && kai jobs && kai send 'from the *shell*'", "sent"
    )
    assert re.search(r"^\d+ +active +\S+ +reminder +tea$", said, re.MULTILINE), said
    kai.answer("bob", "from the shell")
    assert "isn't yours" in kai.ask("bob", "run: kai jobs add --user alice --prompt x --every 1h 2>&1", "isn't yours")
    assert "There is no job" in kai.ask("alice", "run: kai jobs 2>&1", "There is no job")
    kai.machine.run(["kai", "jobs", "remove", "2"])


def test_another_users_api_is_closed_to_an_agent_at_work(kai: Host) -> None:
    said = kai.ask("bob", "run: KAI_API=/run/kai/api/alice.sock kai jobs 2>&1; echo DONE", "DONE")
    assert "Permission denied" in said
    assert KEY not in said
    assert TOKEN not in said


def test_a_service_answers_and_its_key_is_nowhere(kai: Host) -> None:
    """Called by the real CLI; the service repeats what it was asked, key and all."""
    secret = "service-key-that-nobody-may-see-4711"
    kai.machine.run(["systemd-run", "--quiet", "--unit=echo", "python3", "-I", "-c", ECHO])
    kai.machine.run("until [ -s /run/echo-port ]; do sleep 0.1; done", timeout=20)
    port = kai.machine.read("/run/echo-port").strip()
    service = {"url": f"http://127.0.0.1:{port}", "allow_private": True, "auth": {"type": "bearer"}}
    kai.machine.write("/etc/kai/services.yaml", json.dumps({"services": {"echo": service}}), 0o640, "root:kai-config")
    kai.machine.write("/etc/credstore/kai-services/echo", secret, 0o600)
    kai.machine.systemctl("stop", "kai-proxy.service")
    said = kai.ask("alice", tool("call_service", name="echo", params={"city": "Bonn"}), "/?city=Bonn")
    assert "Authorization: Bearer ***" in said
    kai.ask("alice", "run: (cat /proc/*/environ /proc/*/cmdline; env) > all.txt 2>/dev/null; echo LOOKED", "LOOKED")
    kept = kai.machine.run(f"grep -rsl {secret} /var/lib/kai /run/kai /etc/kai /home /tmp /var/tmp", check=False).out
    assert kept == ""
    assert int(kai.machine.run("wc -c < /var/lib/kai/users/alice/work/all.txt").out) > 500
    assert secret not in kai.machine.run("journalctl --no-pager -o verbose").out
    assert not any(secret in json.dumps(request.body) for request in kai.model.requests)


def test_with_approvals_its_own_tools_need_none_and_a_service_does(kai: Host) -> None:
    kai.configure(approvals="ask")
    kai.machine.run("kai retire --all", check=False)
    kai.ask("alice", "/new", "fresh session")
    kai.ask("alice", tool("send_message", text="no question asked"), "sent")
    kai.answer("alice", "no question asked")
    kai.say("alice", tool("call_service", name="weather"))
    kai.growing("alice", "call_service")
    kai.say("alice", "/stop")
    kai.answer("alice", "Stopped", timeout=60)
    kai.configure(approvals="auto")


def test_each_units_exposure_stays_and_its_socket_comes_back_with_the_target(kai: Host) -> None:
    kai.machine.systemctl("restart", "kai.target", timeout=180)
    kai.wait_status("polling as @")
    assert health(kai, "alice") == "HTTP/1.1 200"
    kai.machine.systemctl("stop", "kai.target")
    listed = "ls /run/kai/api/*.sock"
    kai.machine.wait_for(lambda: kai.machine.run(listed, check=False).code != 0, 60, what="no socket")
    kai.machine.systemctl("start", "kai.target")
    kai.wait_status("polling as @")


def test_a_user_who_is_gone_has_no_api(kai: Host) -> None:
    kai.machine.run(["kai", "users", "remove", "carol"])
    assert kai.active("kai-agent-api@carol.socket") == "inactive"
    assert kai.machine.run("test -e /run/kai/api/carol.sock", check=False).code == 1


def test_no_secret_is_in_the_journal_and_calls_are(kai: Host) -> None:
    text = kai.machine.run("journalctl --no-pager -o cat").out
    assert "api: POST /api/schedule -> 200" in text
    for secret in (KEY, TOKEN):
        assert secret not in text
