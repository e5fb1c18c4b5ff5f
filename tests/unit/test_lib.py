"""Small promises of kai.lib."""

import logging
import os
import socket
from pathlib import Path

import pytest

from kai.lib import credentials, hostile, log
from kai.lib.daemon import take_sockets
from kai.lib.peers import OPERATOR, Peer, Peers, check_uid_map
from kai.lib.varlink import Misconfigured


def test_a_secret_is_in_no_log_line_even_inside_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("test")
    log.secret("123:very-secret")
    try:
        raise ValueError("https://x/bot123:very-secret/getMe")
    except ValueError:
        logging.getLogger("x").exception("failed at %s", "bot123:very-secret")
    out = capsys.readouterr().err
    assert "very-secret" not in out
    assert out.count("***") >= 2


def test_fields_mark_the_lines_below_them(capsys: pytest.CaptureFixture[str]) -> None:
    log.start("test")
    with log.fields(KAI_USER="alice"), log.fields(KAI_TURN="1.2"):
        logging.getLogger("x").warning("inside")
    logging.getLogger("x").warning("outside")
    inside, outside = capsys.readouterr().err.splitlines()
    assert "user=alice turn=1.2 inside" in inside
    assert "alice" not in outside


def test_what_others_wrote_cannot_paint_on_a_terminal() -> None:
    assert log.printable("a\x1b[31m\nb\x07") == "a [31m b "


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "missing"), (b"", "empty"), (b"  \n", "empty"), (b"\xff", "not UTF-8 text")]
)
def test_a_credential_that_cannot_be_used_names_the_file_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    if content is not None:
        (tmp_path / "kai-telegram-token").write_bytes(content)
    with pytest.raises(Misconfigured, match=rf"{reason}: write it to /etc/credstore/kai-telegram-token"):
        credentials.read("kai-telegram-token")


def test_a_credential_name_cannot_lead_elsewhere() -> None:
    with pytest.raises(ValueError):
        credentials.read("../token")


def test_sockets_without_their_own_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "front:front")
    with pytest.raises(Misconfigured, match="each needs its own name"):
        take_sockets()


def test_sockets_meant_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert take_sockets() == {}


def test_a_partial_uid_map_is_refused() -> None:
    check_uid_map("         0          0 4294967295\n")
    check_uid_map("         0     100000      65536\n")
    with pytest.raises(Misconfigured, match="PrivateUsers"):
        check_uid_map("         0          0          1\n      1000       1000          1\n")


def test_this_process_is_not_another_account() -> None:
    ours, theirs = socket.socketpair()
    peer = Peers(one_uid=True).identify(ours)
    assert peer is not None
    assert peer.uid == os.geteuid()
    named = Peers().identify(ours)
    expected = frozenset({OPERATOR}) if os.geteuid() == 0 else None
    assert (named.roles if isinstance(named, Peer) else named) == expected
    ours.close()
    theirs.close()


def test_a_link_a_pipe_and_a_way_out_are_not_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("s")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to("file")
    (root / "file").write_text("hello")
    (root / "dir").mkdir()
    os.mkfifo(root / "pipe")
    assert hostile.read(root, "file", 3) == (b"hel", True)
    assert hostile.read(root, "file", 5) == (b"hello", False)
    assert hostile.read(root, "none", 5) is None
    for name in ("link", "inside", "pipe", "dir", "../secret", str(tmp_path / "secret")):
        with pytest.raises(hostile.Refused):
            hostile.read(root, name, 10)
