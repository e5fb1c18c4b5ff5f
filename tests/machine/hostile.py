"""The stage for attempts.py: two users with secrets, one of them at work, and the other's agent trying.

An agent tries the whole table in one turn: chat, bot, supervisor, sudo, the real CLI, its Bash tool and a small program
that starts each attempt and writes down how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.machine.attempts import STAND_IN, TABLE, Attempt
from tests.machine.container import Result
from tests.machine.host import KEY, TOKEN, USERS, Host

ACCOUNTS = {"alice": "alice", "bob": "kai-w-bob"}
"""Users and their work accounts: alice brings hers, bob's is made by Kai."""
PLACE = "/usr/local/share/hostile"
PATIENCE = 10
"""Seconds that one attempt may take; what takes longer has failed."""

_RUNNER = """
import json, os, signal, subprocess, sys
me = sys.argv[1]
rows, variables = json.load(open(f"{sys.argv[2]}/table.json")), json.load(open(f"{sys.argv[2]}/{me}.json"))
with open("/tmp/attempts.jsonl", "w") as file:
    for name, argv in rows:
        child = subprocess.Popen(argv, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            said, code = child.communicate(timeout=PATIENCE)[0], child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            said, code = child.communicate()[0] + b"(took too long)", 124
        file.write(json.dumps([name, code, said.decode(errors="replace")[-4000:]]) + "\\n")
print("tried", len(rows))
"""
_VICTIM = """
import ctypes, os, sys, time
me = sys.argv[1]
open(f"/dev/shm/left-by-{me}", "w").write(f"secret-of-{me}: shared memory")
if ctypes.CDLL(None).shmget(int(sys.argv[2]), 4096, 0o1666) < 0: sys.exit("no shared memory")
open("/tmp/victim", "w").write(str(os.getpid()))
time.sleep(600)
"""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: whether it got what it wanted, and what it said."""

    worked: bool
    said: str


@dataclass
class Trial:
    """All of one agent's attempts, what the rightful got, and what root saw outside before and after."""

    tried: dict[str, Outcome] = field(default_factory=dict)
    rightful: dict[str, Outcome] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)


def home(kai: Host, user: str) -> str:
    """The home directory of the user's work account."""
    return kai.machine.run(f"getent passwd {ACCOUNTS[user]} | cut -d: -f6").out.strip()


def settle(kai: Host, user: str, **fields: Any) -> None:
    """Change the user's entry in users.yaml, None takes a field out, and apply it."""
    program = (
        "import json, sys, yaml; path = '/etc/kai/users.yaml'; name, new = json.load(sys.stdin)\n"
        "all = yaml.safe_load(open(path)); one = next(each for each in all['users'] if each['name'] == name)\n"
        "one.update(new); [one.pop(key) for key in new if new[key] is None]; open(path, 'w').write(yaml.safe_dump(all))"
    )
    kai.machine.run(["/opt/kai/current/bin/python", "-I", "-c", program], input=json.dumps([user, fields]))
    kai.machine.run("kai users apply")


def secret(user: str) -> str:
    return f"secret-of-{user}"


def stage(kai: Host) -> None:
    """Secrets in every place of both users, a day of old history, and the programs of this file."""
    for user, account in ACCOUNTS.items():
        supervisor, base = f"kai-u-{user}", f"/var/lib/kai/users/{user}"
        places = {f"{base}/{name}/secret": account for name in ("work", "tmp", "memory")} | {
            f"{home(kai, user)}/secret": account
        }
        places |= {f"{base}/{name}/secret": supervisor for name in ("state", "files")}
        for path, owner in places.items():
            kai.machine.write(path, f"{secret(user)}: {path}\n", mode=0o640, owner=f"{owner}")
        kai.machine.run(f"chgrp {supervisor} {base}/files/secret")
        kai.machine.run(["tee", f"{base}/history/2000-01-01.jsonl"], user=supervisor, input=f"{secret(user)}: old\n")
        kai.machine.run(f"chmod 640 {base}/history/2000-01-01.jsonl")
        kai.machine.write(f"/etc/kai/identity.d/{user}.md", f"{secret(user)}: identity\n", 0o640, "root:kai-config")
    places_of = {
        f"/var/lib/kai/users/{user}/work": {"env": {"PLACE": f"{secret(user)}: workspace"}} for user in ACCOUNTS
    }
    kai.machine.run(["tee", "/etc/kai/workspaces.yaml"], input=json.dumps(places_of))
    kai.machine.run("kai check && systemctl try-reload-or-restart kai-bot kai-proxy 'kai-agent@*.service'")
    kai.machine.write(f"{PLACE}/runner.py", _RUNNER.replace("PATIENCE", str(PATIENCE)))
    kai.machine.write(f"{PLACE}/victim.py", _VICTIM)
    kai.machine.write(f"{PLACE}/table.json", json.dumps([(row.name, row.argv) for row in TABLE]))


def trial(kai: Host, me: str, them: str) -> Trial:
    """The agent of `me` tries everything while the agent of `them` works; then the rightful do the same."""
    kai.ask(me, "say: ready", "ready")
    key = str(USERS[them])
    work = f"SECRET='{secret(them)}: environment' python3 {PLACE}/victim.py {them} {key} '{secret(them)}: argument'"
    kai.say(them, f"run: {work}")
    victim = f"/var/lib/kai/users/{them}/tmp/victim"
    kai.machine.wait_for(lambda: kai.machine.run(["test", "-s", victim], check=False).code == 0, what="they work")
    variables = _variables(kai, me, them) | {"THEIR_COMMAND": kai.machine.read(victim), "THEIR_KEY": key}
    kai.machine.write(f"{PLACE}/{me}.json", json.dumps(variables))
    idle = "! systemctl --quiet is-active kai-scheduler.service kai-timers.service"
    kai.machine.wait_for(lambda: kai.machine.run(idle, check=False).code == 0, 60, what="the scheduler has left")
    found = Trial(before=_lives(kai, variables))
    kai.machine.run("touch /root/before")
    kai.ask(me, f"run: python3 -I {PLACE}/runner.py {me} {PLACE}", f"tried {len(TABLE)}", timeout=110)
    found.after, found.changed = _lives(kai, variables), _changed(kai)
    written = kai.machine.read(f"/var/lib/kai/users/{me}/tmp/attempts.jsonl")
    ended = {name: (code, said) for name, code, said in map(json.loads, written.splitlines())}
    for row in TABLE:
        code, said = ended[row.name]
        worked = traced(kai, row, variables) if row.trace else code == 0
        found.tried[row.name] = Outcome(worked, f"exit status {code}: {said}")
    for row in TABLE:
        found.rightful[row.name] = _rightful(kai, row, variables)
    kai.ask(them, "/stop", "")
    kai.machine.run(f"rm -f {victim}")
    return found


def _variables(kai: Host, me: str, them: str) -> dict[str, str]:
    def pid(question: str) -> str:
        return kai.machine.run(question).out.split()[0]

    def main(unit: str) -> str:
        return pid(f"systemctl show -P MainPID {unit}")

    own = main(f"kai-agent@{me}")
    return {
        "ME": me, "ACCOUNT": ACCOUNTS[me], "OWN": f"/var/lib/kai/users/{me}",
        "THEM": them, "THEIR_ACCOUNT": ACCOUNTS[them], "THEIRS": f"/var/lib/kai/users/{them}",
        "THEIR_HOME": home(kai, them),
        "BOT": main("kai-bot"), "SUPERVISOR": own, "SUDO": pid(f"pgrep -P {own} -x sudo"),
        "THEIR_SUPERVISOR": main(f"kai-agent@{them}"), "THEIR_AGENT": pid(f"pgrep -u {ACCOUNTS[them]} -x claude"),
        "XDG_RUNTIME_DIR": f"/run/user/{pid(f'id -u {ACCOUNTS[me]}')}",
    }  # fmt: skip


def _lives(kai: Host, variables: dict[str, str]) -> dict[str, str]:
    """Each process that an attempt is made upon, with its start, its niceness and whether it is stopped."""
    names = ("BOT", "SUPERVISOR", "SUDO", "THEIR_SUPERVISOR", "THEIR_AGENT", "THEIR_COMMAND")
    asked = [f"{variables[name]}" for name in names]
    lines = kai.machine.run(f"ps -o pid=,lstart=,nice=,comm= -p {','.join(asked)}").out.splitlines()
    stopped = kai.machine.run(f"ps -o stat= -p {','.join(asked)} | grep -c '^T'", check=False).out.strip()
    return {line.split()[0]: line for line in lines} | {"stopped": stopped}


def _changed(kai: Host) -> list[str]:
    """What has another content, name, owner or mode than when the attempts began."""
    return kai.machine.run("find / /run/kai /run/lock /dev/shm -xdev -cnewer /root/before").out.splitlines()


def traced(kai: Host, row: Attempt, variables: dict[str, str]) -> bool:
    return kai.machine.run(row.trace, env=variables, check=False).code == 0


def _rightful(kai: Host, row: Attempt, variables: dict[str, str]) -> Outcome:
    account = row.rightful.format_map(variables)
    changes = {name: value.format_map(variables | {"UPSTREAM": _upstream(kai)}) for name, value in row.changes.items()}
    for name, value in changes.items():
        if value == STAND_IN:
            changes[name] = kai.machine.run("sleep 60 > /dev/null 2>&1 & echo $!", user=account).out.strip()
    result = as_account(kai, account, row.argv, variables | changes, within=variables.get(row.within, ""))
    worked = traced(kai, row, variables) if row.trace else result.code == 0
    return Outcome(worked, f"exit status {result.code}: {result.out}{result.err}")


def as_account(kai: Host, account: str, argv: Iterable[str], env: dict[str, str], *, within: str = "") -> Result:
    """Outside of the unit, or in the mount and IPC name spaces of a process."""
    if not within:
        return kai.machine.run(list(argv), user=None if account == "root" else account, env=env, check=False)
    become = ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups", "--"]
    words = ["nsenter", f"--target={within}", "--mount", "--ipc", "--", *become, *argv]
    return kai.machine.run(words, env=env, check=False)


def _upstream(kai: Host) -> str:
    return kai.model.address.removeprefix("http://")


def secrets_in(text: str, *, of: str) -> list[str]:
    return [word for word in (TOKEN, KEY, secret(of)) if word in text]
