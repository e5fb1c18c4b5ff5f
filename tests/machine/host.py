"""A user's server with Kai on it: installed by install.sh as the README says, the real Claude Code CLI, a stand-in for
Telegram and a scripted model on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kai.demo.botapi.client import ControlClient
from kai.demo.botapi.views import MessageView
from tests import claude_cli
from tests.machine.container import CHECKOUT, Machine, Result
from tests.messages_api import MessagesAPI

TOKEN = "7654321:machine-ring-token-that-is-secret-0123"
KEY = "sk-ant-machine-ring-key-that-is-secret"
USERS = {"alice": 1001, "bob": 1002, "carol": 1003}
"""alice and bob work as accounts of their own; carol's account is made by Kai."""
ACCOUNTS = {"alice": "alice", "bob": "bob", "carol": ""}
STRANGER = 6666


class Host:
    """The server, its users' chats, and the model that their agents talk to."""

    def __init__(self, machine: Machine, telegram: ControlClient, url: str, model: MessagesAPI) -> None:
        self.machine, self.telegram, self.url, self.model = machine, telegram, url, model

    def install(self, *options: str, check: bool = True) -> Result:
        return self.machine.run(["./install.sh", *options], cwd="/root/kai", timeout=900, check=check)

    def first_install(self, accounts: Mapping[str, str] = ACCOUNTS) -> Result:
        """The command of the README, with answers given as options. `accounts` is user → os_user, "" for none."""
        self.machine.write("/root/token", TOKEN + "\n", mode=0o600)
        self.machine.write("/root/key", KEY + "\n", mode=0o600)
        users = [f"--user={USERS[name]}:{name}" + (f":{own}" if own else "") for name, own in accounts.items()]
        return self.install(
            "--token-file=/root/token", "--model-key-file=/root/key", "--api-base", self.url,
            "--agent-command=/usr/local/bin/claude", *users,
        )  # fmt: skip

    def configure(self, **settings: Any) -> None:
        """Change /etc/kai/kai.yaml as an operator would, with an editor, and have it read again."""
        program = (
            "import json, sys, yaml; path = '/etc/kai/kai.yaml'; now = yaml.safe_load(open(path)) or {}\n"
            "def merge(a, b):\n"
            "    for k, v in b.items(): a[k] = merge(a.get(k) or {}, v) if isinstance(v, dict) else v\n"
            "    return a\n"
            "text = yaml.safe_dump(merge(now, json.load(sys.stdin))); open(path, 'w').write(text)"
        )
        self.machine.run(["/opt/kai/current/bin/python", "-I", "-c", program], input=json.dumps(settings))
        self.machine.run("systemctl try-reload-or-restart kai-bot kai-proxy 'kai-agent@*.service'")

    def say(self, user: str, text: str) -> int:
        return self.telegram.say(USERS[user], text).message_id

    def answer(self, user: str, contains: str, *, after: int = 0, timeout: float = 60) -> MessageView:
        """The bot's first message with this text that no longer grows."""

        def look() -> MessageView | None:
            for message in self.telegram.messages(USERS[user], history=True):
                if message.by_bot and message.message_id > after and contains in (message.text or ""):
                    return None if message.buttons else message
            return None

        try:
            return self.telegram.wait_for(look, timeout=timeout)
        except TimeoutError:
            shown = [message.text for message in self.telegram.messages(USERS[user]) if message.by_bot][-4:]
            journal = self.machine.run("journalctl -n 40 --no-pager -o cat", check=False).out
            raise AssertionError(f"{user} was never shown {contains!r}, but {shown}\n{journal}") from None

    def ask(self, user: str, text: str, contains: str = "", *, timeout: float = 60) -> str:
        """Say something and give the text of the answer."""
        return self.answer(user, contains, after=self.say(user, text), timeout=timeout).text or ""

    def growing(self, user: str, contains: str, timeout: float = 30) -> MessageView:
        def look() -> MessageView | None:
            for message in self.telegram.messages(USERS[user]):
                if message.by_bot and message.buttons and contains in (message.text or ""):
                    return message
            return None

        return self.telegram.wait_for(look, timeout=timeout)

    def status(self, unit: str = "kai-bot") -> str:
        return self.machine.systemctl("show", "-P", "StatusText", unit).out.strip()

    def active(self, unit: str) -> str:
        return self.machine.systemctl("is-active", unit, check=False).out.strip()

    def wait_status(self, contains: str, unit: str = "kai-bot", timeout: float = 30) -> str:
        def look() -> str | None:
            text = self.status(unit)
            return text if contains in text else None

        return self.machine.wait_for(look, timeout, what=f"{unit} says {contains!r}, not {self.status(unit)!r}") or ""

    def varlink(self, account: str, socket: str, method: str, parameters: dict[str, Any] | None = None) -> str:
        """One call as an account: the error's name, `ok`, or the operating system's refusal."""
        call = json.dumps({"method": method, "parameters": parameters or {}, "more": True})
        program = (
            "import json, socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
            "try:\n"
            "    s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + b'\\0'); data = b''\n"
            "    while not data.endswith(b'\\0'):\n"
            "        piece = s.recv(65536)\n"
            "        if not piece: print('closed'); break\n"
            "        data += piece\n"
            "    else: print(json.loads(data.split(b'\\0')[0]).get('error', 'ok'))\n"
            "except OSError as e: print(type(e).__name__)"
        )
        return self.machine.run(["python3", "-I", "-c", program, socket, call], user=account).out.strip()


@contextmanager
def telegram(authority: Path | None = None) -> Iterator[tuple[ControlClient, str]]:
    """The stand-in for Telegram, outside the container as the real one is. It trusts this authority's certificates."""
    trust = {"SSL_CERT_FILE": str(authority)} if authority else {}
    with TemporaryDirectory() as name:
        (Path(name) / "token").write_text(TOKEN)
        program = [
            sys.executable,
            "-m",
            "kai.demo.botapi",
            "--token-file",
            f"{name}/token",
            "--port-file",
            f"{name}/port",
        ]
        with subprocess.Popen(program, cwd=CHECKOUT, stdout=subprocess.DEVNULL, env={**os.environ, **trust}) as process:
            try:
                while not (port := Path(name) / "port").exists():
                    assert process.poll() is None, "the Bot API stand-in did not start"
                    time.sleep(0.05)
                url = f"http://127.0.0.1:{port.read_text().strip()}"
                client = ControlClient(url, TOKEN)
                for user in (*USERS.values(), STRANGER):
                    client.declare_user(user)
                yield client, url
            finally:
                process.terminate()


@contextmanager
def host(suite: str, accounts: Mapping[str, str] = ACCOUNTS, *, authority: Path | None = None) -> Iterator[Host]:
    """A booted Debian with the accounts, the CLI and a copy of the checkout; Kai is not installed yet."""
    with (
        telegram(authority) as (client, url),
        MessagesAPI(key=KEY) as model,
        Machine.create(suite, binds={claude_cli.path(): "/usr/local/bin/claude"}) as machine,
    ):
        machine.boot()
        for name in filter(None, accounts.values()):
            machine.run(["useradd", "--create-home", "--shell=/bin/bash", name])
        machine.push_checkout("/root/kai")
        yield Host(machine, client, url, model)
