"""Services on a server: kai-proxy's two sockets, keys that systemd alone hands over, and who may open which door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machine.host import Host, host

DOOR = "/run/kai/proxy.sock"
STORE, ENCRYPTED = "/etc/credstore/kai-services", "/etc/credstore.encrypted/kai-services"
PLAIN, SEALED = "plain-key-0123456789", "sealed-key-0123456789"
ECHO = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{self.path} {self.headers}".encode()
        self.send_response(200); self.send_header("Content-Length", len(body)); self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open("/run/echo-port", "w").write(str(server.server_port))
server.serve_forever()
"""
CALL = """
import array, json, os, socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(45)
up, down = os.memfd_create("up"), os.memfd_create("down")
try:
    s.connect(sys.argv[1])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [up, down]))] if "Call" in sys.argv[2] else []
    s.sendmsg([sys.argv[2].encode() + b"\\0"], rights); data = b""
    while not data.endswith(b"\\0"):
        piece = s.recv(65536)
        if not piece: break
        data += piece
    answer = json.loads(data.rstrip(b"\\0") or b'{"error": "closed"}')
except OSError as error:
    answer = {"error": type(error).__name__}
print(json.dumps({**answer, "body": os.pread(down, 1 << 20, 0).decode()}))
"""


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian; the tests of this file share it, in their order."""
    with host(suite) as made:
        made.first_install()
        made.configure(proxy={"model": {"url": made.model.address}})
        made.wait_status("polling as @")
        made.machine.run(["systemd-run", "--quiet", "--unit=echo", "python3", "-I", "-c", ECHO])
        made.machine.run("until [ -s /run/echo-port ]; do sleep 0.1; done", timeout=20)
        yield made


def configure(kai: Host, **services: dict[str, Any]) -> None:
    port = kai.machine.read("/run/echo-port").strip()
    for settings in services.values():
        settings |= {"url": f"http://127.0.0.1:{port}", "allow_private": True}
    kai.machine.write("/etc/kai/services.yaml", json.dumps({"services": services}), 0o640, "root:kai-config")
    assert kai.machine.run("kai check").code == 0
    kai.machine.systemctl("stop", "kai-proxy.service")


def call(kai: Host, name: str, account: str = "kai-u-alice", method: str = "Call") -> dict[str, Any]:
    parameters = {"name": name} if method == "Call" else {}
    asked = json.dumps({"method": f"kai.Proxy.{method}", "parameters": parameters})
    answer: dict[str, Any] = json.loads(kai.machine.run(["python3", "-I", "-c", CALL, DOOR, asked], user=account).out)
    return answer


def test_both_doors_listen_and_no_process_runs(kai: Host) -> None:
    assert kai.active("kai-proxy.socket") == kai.active("kai-proxy-model.socket") == "active"
    kai.machine.systemctl("stop", "kai-proxy.service")
    assert kai.active("kai-proxy.service") == "inactive"
    assert kai.machine.run(["kai", "doctor"], check=False).out.count("ok     services") == 1


def test_a_supervisor_calls_with_a_key_that_only_the_service_sees(kai: Host) -> None:
    configure(
        kai, open={"auth": "bearer"}, sealed={"auth": {"type": "header", "name": "X-Key"}}, bobs={"users": ["bob"]}
    )
    assert "the service open has no key" in kai.machine.run(["kai", "doctor"], check=False).out
    missing = call(kai, "open")
    assert missing["error"] == "kai.Misconfigured"
    assert f"{STORE}/open" in missing["parameters"]["message"]
    kai.machine.write(f"{STORE}/open", f"{PLAIN}\n", 0o600)
    seal = f"systemd-creds encrypt --with-key=host --name=serviceenc_sealed - {ENCRYPTED}/sealed"
    kai.machine.run(seal, input=SEALED)
    kai.machine.run(f"chmod 600 {ENCRYPTED}/sealed; systemctl stop kai-proxy")
    assert "ok     services" in kai.machine.run(["kai", "doctor"], check=False).out
    for name, header in (("open", "Authorization: Bearer ***"), ("sealed", "X-Key: ***")):
        answer = call(kai, name)
        assert answer["parameters"]["status"] == 200, answer
        assert header in answer["body"]
    assert call(kai, "bobs")["error"] == "kai.Proxy.UnknownService"
    assert call(kai, "bobs", "kai-u-bob")["parameters"]["status"] == 200
    assert [each["name"] for each in call(kai, "", method="List")["parameters"]["services"]] == ["open", "sealed"]


def test_the_model_door_is_served_by_the_same_process(kai: Host) -> None:
    pid = kai.machine.systemctl("show", "-P", "MainPID", "kai-proxy.service").out.strip()
    assert pid != "0"
    assert "pong" in kai.ask("alice", "say: pong", "pong")
    assert call(kai, "open")["parameters"]["status"] == 200
    assert kai.machine.systemctl("show", "-P", "MainPID", "kai-proxy.service").out.strip() == pid


@pytest.mark.parametrize("account", ["alice", "bob", "kai-w-carol", "kai-bot", "kai-scheduler", "kai-totp", "nobody"])
def test_nobody_else_opens_the_door_or_reads_a_key(kai: Host, account: str) -> None:
    assert call(kai, "open", account)["error"] == "PermissionError"
    for path in (f"{STORE}/open", f"{ENCRYPTED}/sealed", "/run/credentials/kai-proxy.service/service_open"):
        assert kai.machine.run(["cat", path], user=account, check=False).code != 0


def test_no_supervisor_reads_a_key_and_none_is_in_the_journal(kai: Host) -> None:
    for path in (f"{STORE}/open", "/run/credentials/kai-proxy.service/service_open", "/etc/credstore"):
        assert kai.machine.run(f"cat {path} || ls {path}", user="kai-u-alice", check=False).code != 0
    text = kai.machine.run("journalctl --no-pager -o verbose").out
    assert PLAIN not in text
    assert SEALED not in text
    lines = [entry["MESSAGE"] for entry in kai.machine.journal("kai-proxy", KAI_USER="alice")]
    assert any(line.startswith("alice: open GET -> 200, ") for line in lines)


def test_a_purge_removes_the_keys(kai: Host) -> None:
    kai.install("--uninstall", "--purge")
    for path in (STORE, ENCRYPTED):
        assert kai.machine.run(["test", "-e", path], check=False).code == 1
    assert kai.machine.run("getent group kai-proxy-clients", check=False).out == ""
