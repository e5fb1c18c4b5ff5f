"""TOTP on a server: setup at a terminal, secrets that no account reads, a verifier that is masked, broken or killed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pyotp
import pytest

from kai.lib import codes
from tests.machine.host import USERS, Host, host

DOOR = "/run/kai/totp.sock"
STORE, ENCRYPTED, MARKERS = "/etc/credstore/kai-totp", "/etc/credstore.encrypted/kai-totp", "/var/lib/kai/totp/enrolled"
STRANGERS = ("alice", "bob", "kai-w-carol", "kai-u-alice", "kai-u-bob", "kai-proxy", "kai-scheduler", "nobody")
"""Every agent, every supervisor, and the daemons that have nothing to ask here."""
SETUP = """
import os, pty, re, sys, time, pyotp
pid, master = pty.fork()
if not pid:
    os.execv("/usr/local/bin/kai", ["kai", "totp", "setup", *sys.argv[1:]])
shown, secret, typed = "", "", False
while True:
    try:
        piece = os.read(master, 65536)
    except OSError:
        break
    if not piece:
        break
    shown += piece.decode()
    found = re.search(r"^ +((?:[A-Z2-7]{4} ?){8})\\r?$", shown, re.M)
    if found and "it shows now" in shown and not typed:
        secret, typed = found[1].replace(" ", ""), True
        os.write(master, (pyotp.TOTP(secret).now() + "\\n").encode())
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(secret)
print(shown[-600:], file=sys.stderr)
sys.exit(status)
"""
CALL = """
import json, socket, sys, time
began = time.monotonic()
s = socket.socket(socket.AF_UNIX); s.settimeout(float(sys.argv[3]))
try:
    s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + b"\\0"); data = b""
    while not data.endswith(b"\\0"):
        piece = s.recv(65536)
        if not piece: break
        data += piece
    answer = json.loads(data.rstrip(b"\\0") or b'{"error": "closed"}')
except OSError as error:
    answer = {"error": type(error).__name__}
print(json.dumps({**answer, "seconds": time.monotonic() - began}))
"""


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian; the tests of this file share it, in their order."""
    with host(suite) as made:
        made.first_install()
        made.configure(proxy={"model": {"url": made.model.address}}, totp={"lockout": 3600})
        made.wait_status("polling as @")
        yield made


def setup(kai: Host, user: str, *options: str) -> str:
    """`kai totp setup` at a terminal; the secret that it showed."""
    python = "/opt/kai/current/bin/python"
    return kai.machine.run([python, "-I", "-c", SETUP, user, *options]).out.strip()


def ask(
    kai: Host, method: str, account: str | None = "kai-bot", timeout: float = 60, **parameters: Any
) -> dict[str, Any]:
    """The whole answer, and how long it took."""
    call = json.dumps({"method": f"kai.Totp.{method}", "parameters": parameters})
    said = kai.machine.run(["python3", "-I", "-c", CALL, DOOR, call, str(timeout)], user=account).out
    answer: dict[str, Any] = json.loads(said)
    return answer


def verify(kai: Host, user: str, code: str = "") -> str:
    """The state that the bot hears, or the error."""
    answer = ask(kai, "Verify", user=user, code=code)
    return str(answer.get("error") or answer["parameters"]["state"])


def later(secret: str) -> str:
    """A code that is new even right after a setup."""
    return pyotp.TOTP(secret).generate_otp(codes.step_at(time.time()) + 1)


def unused(secret: str) -> str:
    """A code that is new whatever was taken before: waits for the next step."""
    began = codes.step_at(time.time())
    while codes.step_at(time.time()) == began:
        time.sleep(0.5)
    return later(secret)


def test_a_socket_listens_and_no_process_runs(kai: Host) -> None:
    assert kai.active("kai-totp.socket") == "active"
    assert kai.active("kai-totp.service") == "inactive"
    assert verify(kai, "alice") == "off"


def test_a_setup_at_a_terminal_is_in_force_at_once(kai: Host) -> None:
    secret = setup(kai, "alice")
    assert kai.machine.read(f"{STORE}/alice").strip() == secret
    shown = kai.machine.run(
        f"stat -c '%a %U %G %n' {STORE} {STORE}/alice {MARKERS} {MARKERS}/alice /var/lib/kai/totp"
    ).out
    assert shown.splitlines() == [
        f"700 root root {STORE}",
        f"600 root root {STORE}/alice",
        f"750 root kai-config {MARKERS}",
        f"640 root kai-config {MARKERS}/alice",
        "750 root kai-config /var/lib/kai/totp",
    ]
    code = later(secret)
    assert [verify(kai, "alice", code), verify(kai, "alice", code)] == ["ok", "bad"]
    status = kai.machine.run(["kai", "totp", "status"]).out
    assert re.search(r"^alice +on .* 1 +- +-$", status, re.MULTILINE), status
    assert "totp     alice enrolled, let in now: nobody\n" in kai.machine.run(["kai", "status"]).out


def test_an_encrypted_secret_works_like_a_plain_one(kai: Host) -> None:
    secret = setup(kai, "bob", "--encrypt")
    assert kai.machine.run(f"test -e {STORE}/bob", check=False).code == 1
    assert secret not in kai.machine.run(f"base64 -d {ENCRYPTED}/bob | strings; cat {ENCRYPTED}/bob").out
    assert verify(kai, "bob", later(secret)) == "ok"
    again = setup(kai, "bob", "--replace")
    assert kai.machine.run(f"test -e {ENCRYPTED}/bob", check=False).code == 1
    assert (verify(kai, "bob", later(secret)), verify(kai, "bob", later(again))) == ("bad", "ok")


def test_in_the_chat_a_code_lets_a_message_through_and_a_restart_of_the_bot_locks_again(kai: Host) -> None:
    secret = kai.machine.read(f"{STORE}/alice").strip()
    first = kai.say("alice", "run: id -un; echo DONE")
    kai.answer("alice", "Held until then: “run: id -un; echo DONE”", after=first)
    code = unused(secret)
    sent = kai.say("alice", code)
    kai.answer("alice", "Let in", after=first)
    assert "alice" in (kai.answer("alice", "DONE", after=sent).text or "")
    kai.telegram.wait_for(
        lambda: sent not in [each.message_id for each in kai.telegram.messages(USERS["alice"])] or None, timeout=30
    )
    assert code not in kai.machine.run("journalctl --no-pager -o cat -u kai-bot -u kai-totp").out
    kai.machine.systemctl("kill", "-s", "KILL", "kai-bot")
    kai.machine.wait_for(lambda: kai.active("kai-bot.service") == "active", 30, what="kai-bot")
    again = kai.say("alice", "run: echo NOT YET")
    kai.answer("alice", "Send the six digits", after=again)
    assert kai.machine.run(f"grep -c {code} /var/lib/kai/bot/queue.db*", check=False).out.split(":")[-1].strip() == "0"


@pytest.mark.parametrize("account", STRANGERS)
def test_nobody_else_reaches_the_verifier_the_secret_the_counters_or_the_marker(kai: Host, account: str) -> None:
    verify(kai, "alice")  # it runs, and its credentials are mounted
    for method in ("Verify", "List", "Unlock"):
        assert ask(kai, method, account, user="alice")["error"] == "PermissionError"
    for command in (
        f"cat {STORE}/alice",
        f"ls {STORE}",
        "cat /run/credentials/kai-totp.service/totp_alice",
        "cat /run/credentials/kai-totp.service/*",
        "cat /proc/$(systemctl show -P MainPID kai-totp)/environ",
        "cat /proc/$(systemctl show -P MainPID kai-totp)/root/run/credentials/kai-totp.service/totp_alice",
        "head -c 100 /proc/$(systemctl show -P MainPID kai-totp)/mem",
        "ls /var/lib/kai/totp/state",
        "cat /var/lib/kai/totp/state/totp.db",
        f"rm -f {MARKERS}/alice && ! test -e {MARKERS}/alice",
        f"touch {MARKERS}/x",
        f"echo '{{\"step\": 0}}' > {MARKERS}/alice",
        f"mv {MARKERS} /tmp/",
        "chmod 777 /var/lib/kai/totp",
        "kill -9 $(systemctl show -P MainPID kai-totp)",
        "systemctl --no-ask-password stop kai-totp.socket",
    ):
        tried = kai.machine.run(command, user=account, check=False)
        assert tried.code != 0, (command, tried)
    assert kai.machine.run(f"test -e {MARKERS}/alice").code == 0
    assert kai.active("kai-totp.socket") == "active"


def test_the_bot_and_the_verifier_see_the_markers_and_change_none(kai: Host) -> None:
    for account in ("kai-bot", "kai-totp"):
        assert kai.machine.run(f"stat {MARKERS}/alice", user=account).code == 0
        for command in (f"rm {MARKERS}/alice", f"touch {MARKERS}/x", f"cat {STORE}/alice", f"mv {MARKERS} {MARKERS}2"):
            assert kai.machine.run(command, user=account, check=False).code != 0, (account, command)
    for command in ("cat /run/credentials/kai-totp.service/*", "ls /var/lib/kai/totp/state"):
        assert kai.machine.run(command, user="kai-bot", check=False).code != 0


def test_an_agent_at_work_reaches_nothing_of_it(kai: Host) -> None:
    """Bob's agent, inside of its unit, with bob enrolled and alice too."""
    kai.machine.run("kai totp reset bob")
    secret = kai.machine.read(f"{STORE}/alice").strip()
    tries = f"cat {STORE}/* {MARKERS}/* /run/credentials/*/* /var/lib/kai/totp/state/*; ls {MARKERS}"
    tries += "; rm -rf /var/lib/kai/totp"
    said = kai.ask("bob", f"run: ({tries}; echo DONE) 2>&1 | tail -c 3000", "DONE")
    assert secret not in said
    assert "ermission denied" in said or "No such file" in said
    assert kai.machine.run(f"test -e {MARKERS}/alice").code == 0


def test_the_caller_table_holds_for_those_whom_the_kernel_admits(kai: Host) -> None:
    denied = "org.varlink.service.PermissionDenied"
    assert ask(kai, "Verify", None, user="alice", code="123456")["error"] == denied
    for method in ("List", "Unlock"):
        assert ask(kai, method, user="alice")["error"] == denied


def test_it_has_no_capability_no_network_and_keeps_to_its_exposure(kai: Host) -> None:
    kai.machine.run("systemd-analyze security --threshold=5 --no-pager kai-totp.service")
    verify(kai, "alice")
    pid = kai.machine.systemctl("show", "-P", "MainPID", "kai-totp.service").out.strip()
    status = kai.machine.read(f"/proc/{pid}/status")
    for line in (r"^CapEff:\s*0+$", r"^CapBnd:\s*0+$", r"^NoNewPrivs:\s*1$", r"^Seccomp:\s*2$"):
        assert re.search(line, status, re.M)
    shown = kai.machine.systemctl("show", "-p", "RestrictAddressFamilies", "-p", "PrivateNetwork", "kai-totp").out
    assert sorted(shown.split()) == ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]


def test_it_answers_soon_after_a_cold_start(kai: Host) -> None:
    taken = []
    for _ in range(7):
        kai.machine.systemctl("stop", "kai-totp.service")
        taken.append(ask(kai, "Verify", user="alice")["seconds"])
    print(f"cold start to answer: {sorted(round(each * 1000) for each in taken)} ms")
    assert sorted(taken)[3] < 1.0


def test_guesses_across_kills_and_restarts_lock(kai: Host) -> None:
    kai.machine.run(["kai", "totp", "unlock", "alice"])
    heard = []
    for number in range(6):
        if number % 2:
            kai.machine.systemctl("kill", "--signal=SIGKILL", "kai-totp.service", check=False)
        heard.append(verify(kai, "alice", "000000"))
    assert [each for each in heard if each in ("bad", "locked")][:3] == ["bad", "bad", "locked"]
    assert "ok" not in heard
    assert verify(kai, "alice", later(kai.machine.read(f"{STORE}/alice").strip())) == "locked"


def test_a_lock_survives_a_reboot_and_ends_by_the_operators_hand(kai: Host) -> None:
    kai.machine.stop()
    kai.machine.boot()
    kai.wait_status("polling as @")
    secret = kai.machine.read(f"{STORE}/alice").strip()
    assert verify(kai, "alice", later(secret)) == "locked"
    assert re.search(r"^alice +on .*\d\d:\d\d:\d\d", kai.machine.run(["kai", "totp", "status"]).out, re.MULTILINE)
    kai.machine.run(["kai", "totp", "unlock", "alice"])
    assert verify(kai, "alice", unused(secret)) == "ok"


def test_a_masked_verifier_lets_nobody_pass(kai: Host) -> None:
    secret = kai.machine.read(f"{STORE}/alice").strip()
    kai.machine.systemctl("stop", "kai-totp.socket", "kai-totp.service")
    kai.machine.systemctl("mask", "--runtime", "kai-totp.service", "kai-totp.socket")
    assert ask(kai, "Verify", timeout=5, user="alice", code=later(secret))["error"] in (
        "FileNotFoundError", "ConnectionRefusedError", "TimeoutError", "closed",
    )  # fmt: skip
    said = kai.say("alice", "run: echo PASSED")
    kai.answer("alice", "can't be checked now", after=said)
    assert "kai-totp" in kai.machine.run(["kai", "doctor"], check=False).out
    assert "no socket" in kai.machine.run(["kai", "status"], check=False).out
    kai.machine.systemctl("unmask", "--runtime", "kai-totp.service", "kai-totp.socket")
    kai.machine.systemctl("daemon-reload")
    kai.machine.systemctl("start", "kai-totp.socket")
    assert verify(kai, "alice") == "bad"


def test_a_lost_credential_store_lets_nobody_pass(kai: Host) -> None:
    kai.machine.run(f"mv {STORE}/alice /root/kept; systemctl stop kai-totp")
    assert verify(kai, "alice") == "kai.Totp.Doubtful"
    said = kai.machine.run(["kai", "doctor"], check=False)
    assert "alice is enrolled for TOTP, but his secret is missing" in said.out
    kai.machine.run(f"mv {STORE} /root/store; systemctl stop kai-totp")
    assert ask(kai, "Verify", timeout=5, user="alice")["error"] in ("TimeoutError", "closed")
    kai.machine.run(f"mv /root/store {STORE}; mv /root/kept {STORE}/alice; kai totp unlock alice")
    assert verify(kai, "alice") == "bad"


def test_a_secret_that_cannot_be_decrypted_lets_nobody_pass_and_the_doctor_says_so(kai: Host) -> None:
    setup(kai, "bob", "--encrypt")
    kai.machine.run(f"echo garbage > {ENCRYPTED}/bob; systemctl stop kai-totp")
    for user in ("alice", "bob"):
        assert ask(kai, "Verify", timeout=5, user=user)["error"] in ("TimeoutError", "closed"), user
    said = kai.machine.run(["kai", "doctor"], check=False, timeout=120)
    assert "kai-totp" in said.out, said
    setup(kai, "bob", "--replace")
    assert (verify(kai, "alice"), verify(kai, "bob")) == ("bad", "bad")
    kai.machine.systemctl("reset-failed", check=False)


def test_no_secret_and_no_code_is_in_the_journal(kai: Host) -> None:
    text = kai.machine.run("journalctl --no-pager -o verbose").out
    secret = kai.machine.read(f"{STORE}/alice").strip()
    assert secret not in text
    lines = kai.machine.run("journalctl --no-pager -o cat -u kai-totp").out
    assert "a wrong code for alice" in lines
    assert "000000" not in lines
    assert not re.search(r"\b\d{6}\b", lines)


def test_a_reset_opens_and_says_so(kai: Host) -> None:
    assert "isn't enrolled any more" in kai.machine.run(["kai", "totp", "reset", "alice"]).out
    assert verify(kai, "alice") == "off"
    assert kai.machine.run(f"ls {STORE} {MARKERS}").out.split().count("alice") == 0


def test_an_uninstall_stops_it_and_a_purge_removes_its_secrets(kai: Host) -> None:
    setup(kai, "alice")
    kai.install("--uninstall")
    assert kai.active("kai-totp.socket") == "inactive"
    assert kai.machine.run(f"ls {STORE}/alice {MARKERS}/alice").code == 0
    kai.install("--uninstall", "--purge")
    for path in (STORE, ENCRYPTED, "/var/lib/kai"):
        assert kai.machine.run(["test", "-e", path], check=False).code == 1
    assert kai.machine.run("getent passwd kai-totp; getent group kai-totp", check=False).out == ""
