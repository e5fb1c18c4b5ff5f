"""Webhooks on a server: installed units, real nginx and Caddy with TLS before them, GitHub and Telegram played."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.machine.container import CHECKOUT, Result
from tests.machine.host import USERS, Host, host
from tests.process.github_api import TOKEN, GitHubApi

SECRET, BEARER = "machine-ring-secret-of-github-0123", "machine-ring-secret-of-others-0123"
CERTIFICATE = CHECKOUT / "tests/process/localhost.pem"
NGINX, CADDY = "https://localhost:8443", "https://localhost:8444"
STRANGERS = ("alice", "bob", "kai-w-carol", "kai-u-alice", "kai-proxy", "kai-scheduler", "kai-totp", "nobody")


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian with both proxies; the tests of this file share it, in their order."""
    with host(suite, authority=CERTIFICATE) as made:
        made.first_install()
        made.machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode=0o755)
        made.machine.run(
            "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y "
            "nginx-light caddy curl openssl",
            timeout=600,
        )
        made.machine.run("rm /usr/sbin/policy-rc.d; rm -f /etc/nginx/sites-enabled/default")
        made.machine.write("/etc/kai-test.pem", CERTIFICATE.read_text(), mode=0o644)
        for name, secret in (("github", SECRET), ("generic", BEARER)):
            made.machine.write(f"/etc/credstore/kai-webhook/{name}", secret + "\n", mode=0o600)
        made.configure(proxy={"model": {"url": made.model.address}}, webhook={"url": NGINX})
        made.machine.run("systemctl restart kai-webhook")
        made.wait_status("polling as @")
        yield made


def push(text: str) -> dict[str, Any]:
    return {
        "ref": "refs/heads/main", "commits": [{"id": "0123456789", "message": text}], "sender": {"login": "octo"},
        "repository": {"full_name": "acme/site", "owner": {"login": "acme"}},
    }  # fmt: skip


def curl(kai: Host, url: str, *options: str, body: str = "") -> Result:
    """The status is the last line of its output."""
    command = ["curl", "-sS", "--cacert", "/etc/kai-test.pem", "-w", "\n%{http_code}", *options, url]
    return kai.machine.run([*command, *(["--data-binary", "@-"] if body else [])], input=body, check=False)


def status(result: Result) -> int:
    return int(result.out.rsplit("\n", 1)[-1])


def github(kai: Host, address: str, text: str, *options: str, secret: str = SECRET, delivery: str = "") -> int:
    body = json.dumps(push(text))
    signed = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json", "X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signed}",
        "X-GitHub-Delivery": delivery or str(uuid.uuid4()),
    }  # fmt: skip
    given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    return status(curl(kai, f"{address}/webhook/github", *given, *options, body=body))


def test_its_units_are_up_and_the_first_request_starts_the_daemon(kai: Host) -> None:
    for unit in ("kai-webhook.socket", "kai-webhook-http.socket", "kai-webhook-local.socket", "kai-github.socket"):
        assert kai.active(unit) == "active"
    assert kai.active("kai-github.timer") == "inactive", "there is no token"
    kai.machine.systemctl("stop", "kai-webhook.service")
    assert status(curl(kai, "http://127.0.0.1:8080/health")) == 200
    assert kai.active("kai-webhook.service") == "active"
    assert github(kai, "http://127.0.0.1:8080", "over loopback") == 202
    kai.answer("alice", "over loopback")


def test_it_can_accept_and_not_call_out(kai: Host) -> None:
    pid = kai.machine.systemctl("show", "-P", "MainPID", "kai-webhook").out.strip()
    shown = kai.machine.systemctl("show", "-p", "RestrictAddressFamilies,PrivateNetwork", "kai-webhook").out.split()
    assert sorted(shown) == ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]
    assert "Seccomp:\t2" in kai.machine.read(f"/proc/{pid}/status")
    said = kai.machine.run("journalctl -b -u kai-webhook --no-pager -o cat").out
    if "lack privileges for network namespace" in said:  # systemd 257 in a container that shares the host's network
        return
    links = kai.machine.run(["nsenter", "-t", pid, "-n", "ip", "-o", "link"]).out.splitlines()
    assert [link.split()[1] for link in links] == ["lo:"]


@pytest.mark.parametrize("account", STRANGERS)
def test_its_secrets_and_its_spool_are_closed_to_every_account(kai: Host, account: str) -> None:
    for path in ("/etc/credstore/kai-webhook/github", "/var/lib/kai/webhook/intake.db", "/var/lib/kai/webhook/spool/"):
        assert kai.machine.run(["ls", path], user=account, check=False).code != 0
    program = "import socket; socket.socket(socket.AF_UNIX).connect('/run/kai/webhook.sock')"
    assert "PermissionError" in kai.machine.run(["python3", "-I", "-c", program], user=account, check=False).err


def nginx(kai: Host) -> None:
    text = kai.machine.read("/usr/local/share/doc/kai/nginx-kai.conf")
    for before, after in (
        ("listen 443 ssl", "listen 8443 ssl"), ("listen [::]:443 ssl", "listen [::1]:8443 ssl"),
        ("server_name kai.example.org", "server_name localhost"),
        ("/etc/letsencrypt/live/kai.example.org/fullchain.pem", "/etc/kai-test.pem"),
        ("/etc/letsencrypt/live/kai.example.org/privkey.pem", "/etc/kai-test.pem"),
    ):  # fmt: skip
        assert before in text
        text = text.replace(before, after)
    kai.machine.write("/etc/nginx/sites-enabled/kai.conf", text)
    kai.machine.run("nginx -t && systemctl restart nginx")


def caddy(kai: Host) -> None:
    text = kai.machine.read("/usr/local/share/doc/kai/Caddyfile.kai")
    assert "\nkai.example.org {\n" in text
    text = text.replace("kai.example.org {\n", f"{CADDY} {{\n\ttls /etc/kai-test.pem /etc/kai-test.pem\n")
    kai.machine.write("/etc/caddy/Caddyfile.kai", text)
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
    kai.machine.write("/etc/caddy/Caddyfile", options + "import Caddyfile.kai\n")
    kai.machine.run("caddy adapt --config /etc/caddy/Caddyfile >/dev/null && systemctl restart caddy")


PROXIES = {"nginx": (nginx, "www-data", NGINX), "caddy": (caddy, "caddy", CADDY)}


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_reaches_the_socket_once_its_account_is_in_the_group(kai: Host, proxy: str) -> None:
    start, account, address = PROXIES[proxy]
    start(kai)
    assert status(curl(kai, f"{address}/health")) == 502
    kai.machine.run(["usermod", "-aG", "kai-webhook-http", account])
    kai.machine.systemctl("restart", proxy)
    found = curl(kai, f"{address}/health")
    assert found.out == "ok\n\n200"


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_webhook_comes_through_a_real_proxy_with_tls(kai: Host, proxy: str) -> None:
    _, _, address = PROXIES[proxy]
    assert github(kai, address, f"through {proxy}", delivery=f"through-{proxy}") == 202
    assert github(kai, address, f"through {proxy}", delivery=f"through-{proxy}") == 200
    text = kai.answer("alice", f"through {proxy}").text or ""
    assert "octo pushed 1 commit to main (acme/site)" in text
    assert github(kai, address, "forged", secret="another-secret-0123") == 401
    for path in ("/", "/webhook/other", "/webhook/github/x"):
        assert status(curl(kai, address + path)) == 404


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_journal_has_the_clients_address_and_not_what_he_claims(kai: Host, proxy: str) -> None:
    _, _, address = PROXIES[proxy]
    kai.machine.systemctl("restart", "kai-webhook")
    assert github(kai, address, "forged", "-H", "X-Forwarded-For: 192.0.2.66", secret="another-secret-0123") == 401
    said = kai.machine.run("journalctl -u kai-webhook -n 20 --no-pager -o cat").out
    assert "127.0.0.1: delivery" in said or "::1: delivery" in said
    assert "192.0.2.66" not in said


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_limits_of_the_body_agree(kai: Host, proxy: str) -> None:
    _, _, address = PROXIES[proxy]
    headers = ("-H", f"Authorization: Bearer {BEARER}", "-H", "Content-Type: application/json", "-H", "Expect:")
    body = json.dumps({"message": f"large by {proxy}", "rest": "x" * (25 * 1024 * 1024 - 60)})
    assert len(body) <= 25 << 20
    assert status(curl(kai, f"{address}/webhook", *headers, body=body)) == 202
    kai.answer("alice", f"large by {proxy}")
    assert status(curl(kai, f"{address}/webhook", *headers, body=body + " " * 200)) == 413


def test_what_was_accepted_survives_a_kill_and_a_boot_with_the_bot_away(kai: Host) -> None:
    kai.machine.systemctl("stop", "kai-bot.service", "kai-bot.socket")
    for number in range(20):
        assert github(kai, NGINX, f"kept-{number}-") == 202
    kai.machine.run("systemctl kill -s KILL kai-webhook")
    assert len(kai.machine.run("ls /var/lib/kai/webhook/spool").out.split()) == 20
    kai.machine.reboot()
    for number in range(20):
        kai.answer("alice", f"kept-{number}-")
    shown = [message.text or "" for message in kai.telegram.messages(USERS["alice"]) if message.by_bot]
    assert [sum(f"kept-{number}-" in text for text in shown) for number in range(20)] == [1] * 20
    kai.machine.wait_for(lambda: not kai.machine.run("ls /var/lib/kai/webhook/spool").out.strip())
    assert kai.machine.run("kai webhooks").code == 0


def test_the_operator_sees_what_was_given_up_and_has_it_tried_again(kai: Host) -> None:
    body = "no JSON at all"
    signed = hmac.new(SECRET.encode(), body.encode(), hashlib.sha256).hexdigest()
    headers = (
        "-H", "Content-Type: application/json", "-H", "X-GitHub-Event: push", "-H", "X-GitHub-Delivery: rubbish",
        "-H", f"X-Hub-Signature-256: sha256={signed}",
    )  # fmt: skip
    assert status(curl(kai, f"{NGINX}/webhook/github", *headers, body=body)) == 202
    kai.answer("alice", "rubbish")
    shown = kai.machine.run("kai webhooks", check=False)
    assert shown.code == 1
    assert "given up  1" in shown.out and "rubbish" in shown.out
    assert "deliveries were given up" in kai.machine.run("kai doctor", check=False).out
    kai.machine.run("kai webhooks --retry", check=False)
    kai.machine.run("rm /var/lib/kai/webhook/failed/*", check=False)
    kai.machine.wait_for(lambda: "given up  0" in kai.machine.run("kai webhooks", check=False).out)


def test_what_github_could_not_deliver_is_fetched_with_a_token_that_no_one_else_holds(kai: Host) -> None:
    github_api = GitHubApi(secret=SECRET)
    github_api.start()
    try:
        kai.configure(github={"api_base": github_api.url})
        kai.machine.systemctl("restart", "kai-webhook")
        kai.machine.write("/etc/credstore/kai-github/token", TOKEN + "\n", mode=0o600)
        for account in (*STRANGERS, "kai-webhook", "kai-bot"):
            read = kai.machine.run(["cat", "/etc/credstore/kai-github/token"], user=account, check=False)
            assert read.code != 0
        kai.machine.systemctl("start", "kai.target")
        assert kai.active("kai-github.timer") == "active"
        kai.ask("alice", "/github add acme/site", "✓")
        hook = github_api.hook("acme/site", f"{NGINX}/webhook/github")
        github_api.deliver(hook, "push", push("was lost"), answer=502, ago=timedelta(hours=2))

        def lead(headers: dict[str, str], body: bytes) -> int:
            given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
            return status(curl(kai, f"{NGINX}/webhook/github", *given, body=body.decode()))

        github_api.lead = lead
        kai.machine.systemctl("restart", "kai-github.service")
        kai.answer("alice", "was lost")
        told = "journalctl -u kai-github --no-pager -o cat"
        kai.machine.wait_for(lambda: "1 asked for again" in kai.machine.run(told).out)
        assert TOKEN not in kai.machine.run("journalctl --no-pager -o cat").out
    finally:
        github_api.stop()


def test_telegram_posts_updates_through_nginx_and_back_to_polling_nothing_is_lost(kai: Host) -> None:
    kai.configure(telegram={"mode": "webhook", "webhook_url": f"{NGINX}/webhook/telegram"})
    kai.machine.run("systemctl restart kai-bot kai-webhook")
    kai.wait_status("webhook as @")
    assert "posted" in kai.ask("alice", "say: it was posted", "it was posted")
    assert kai.machine.run("ls -l /var/lib/kai/bot/telegram-webhook.json").out.startswith(
        "-rw------- 1 kai-bot kai-bot"
    )
    kai.machine.systemctl("stop", "nginx")
    mark = kai.say("alice", "say: it waited")
    kai.configure(telegram={"mode": "polling"})
    kai.machine.run("systemctl restart kai-bot kai-webhook")
    kai.answer("alice", "it waited", after=mark)
    kai.wait_status("polling as @")
    kai.machine.systemctl("start", "nginx")


def test_the_units_leave_nothing_behind_when_kai_is_removed(kai: Host) -> None:
    kai.install("--uninstall", "--purge", "--yes")
    assert kai.machine.run("ls -d /etc/credstore/kai-* /var/lib/kai /run/kai/*.sock", check=False).out == ""
    for name in ("kai-webhook", "kai-github"):
        assert kai.machine.run(["getent", "passwd", name], check=False).code != 0
    for name in ("kai-webhook-clients", "kai-webhook-http", "kai-github-clients"):
        assert kai.machine.run(["getent", "group", name], check=False).code != 0
