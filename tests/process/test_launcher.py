"""The launcher keeps systemd's promises: activation, restarts, clean ends, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kai.demo import launcher as under_test
from kai.demo import service
from kai.demo.launcher import Launcher, LauncherError, merged, python
from kai.demo.service import TRIGGERS, Unit

DAEMON = """
import os, signal, socket, subprocess, sys, time

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect(os.environ["NOTIFY_SOCKET"])
        s.send(text.encode())

how = sys.argv[1]
print("argument", how, "listen", os.environ.get("LISTEN_FDNAMES"), file=sys.stderr, flush=True)
if how == "misconfigured":
    notify("STATUS=no token")
    sys.exit(78)
if how == "useless":
    sys.exit(0)
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
names = os.environ["LISTEN_FDNAMES"].split(":")
assert int(os.environ["LISTEN_FDS"]) == len(names)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
listening = socket.socket(fileno=3)
listening.setblocking(True)
notify("READY=1\\nSTATUS=ready as " + how)
while True:
    connection, _ = listening.accept()
    word = connection.recv(100).decode().strip()
    if word == "environment":
        answer = " ".join(sorted(os.environ))
    else:
        answer = f"{os.getpid()} {child.pid} {os.getsid(0)} {len(os.listdir('/proc/self/fd'))} {','.join(names)}"
    connection.sendall(answer.encode())
    connection.close()
    if word == "leave":
        sys.exit(0)
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "misconfigured":
        sys.exit(78)
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def until_gone(pid: int, within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not is_gone(pid):
            await asyncio.sleep(0.01)


async def ask(path: Path, word: str = "hello") -> list[str]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"{word}\n".encode())
    await writer.drain()
    answer = (await asyncio.wait_for(reader.read(), 10)).decode().split()
    writer.close()
    await writer.wait_closed()
    return answer


class Tried(Launcher):
    """A launcher of test daemons in place of the set."""

    def unit(self, how: str, *, resident: bool = False, sockets: tuple[str, ...] = ("front",)) -> Unit:
        program = self.directory / "daemon.py"
        program.write_text(DAEMON, encoding="utf-8")
        paths = tuple((name, self.runtime / f"{how}-{name}.sock") for name in sockets)
        command = (sys.executable, "-I", "-S", os.fspath(program), how)
        return Unit(how, command, paths, self._environment(how), resident=resident)

    def units(self) -> list[Unit]:
        return [self.unit("lazy"), self.unit("resident", resident=True)]

    def path(self, how: str) -> Path:
        return self.runtime / f"{how}-front.sock"


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[Tried]:
    made = Tried(
        tmp_path / "a set",
        api_base="http://127.0.0.1:1",
        token="1:x",
        users=[{"telegram_id": 1, "name": "alice"}],
        stop_patience=1.0,
    )
    async with made:
        yield made


async def test_a_resident_daemon_starts_at_once_and_the_other_waits_for_a_connection(launcher: Tried) -> None:
    await launcher.wait_ready("resident")
    assert launcher.pid("lazy") is None
    assert launcher.status() == {"lazy": "listening", "resident": "running: ready as resident"}
    pid, _, _, _, names = await ask(launcher.path("lazy"))
    assert int(pid) == launcher.pid("lazy")
    assert names == "front"


async def test_sockets_arrive_from_descriptor_3_on_in_their_order_and_nothing_else_leaks(launcher: Tried) -> None:
    launcher.add(launcher.unit("many", sockets=("front", "api", "model")))
    *_, open_files, names = await ask(launcher.path("many"))
    assert names == "front,api,model"
    # 0, 1, 2, the sockets, the connection, and the descriptor that reads the list
    assert int(open_files) == 3 + 3 + 1 + 1


async def test_nothing_of_the_callers_environment_comes_along(launcher: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    names = await ask(launcher.path("lazy"), "environment")
    assert {"LISTEN_FDS", "NOTIFY_SOCKET", "CONFIGURATION_DIRECTORY", "STATE_DIRECTORY"} <= set(names)
    assert not {"ANTHROPIC_API_KEY", "HTTP_PROXY"} & set(names)


async def test_after_a_clean_exit_the_next_connection_starts_it_again(launcher: Tried) -> None:
    for life in range(1, 4):
        await ask(launcher.path("lazy"), "leave")
        assert await launcher.wait_exit("lazy") == 0
        assert launcher.starts("lazy") == life


async def test_a_killed_daemon_is_back_after_a_second_and_its_children_are_gone(launcher: Tried) -> None:
    _, child, *_ = await ask(launcher.path("lazy"))
    began = time.monotonic()
    launcher.kill("lazy")
    await launcher.wait_ready("lazy")
    assert time.monotonic() - began >= 1.0
    assert is_gone(int(child))
    assert launcher.starts("lazy") == 2


async def test_a_connection_made_while_it_is_down_is_served_by_the_next_life(launcher: Tried) -> None:
    await ask(launcher.path("lazy"), "crash")
    assert await launcher.wait_exit("lazy") == -signal.SIGSEGV
    assert launcher.status()["lazy"].startswith("restarting")
    pid, *_ = await ask(launcher.path("lazy"))
    assert int(pid) == launcher.pid("lazy")


async def test_exit_status_78_takes_the_socket_down(launcher: Tried) -> None:
    await ask(launcher.path("lazy"), "misconfigured")
    await launcher.wait_exit("lazy")
    with pytest.raises(FileNotFoundError):
        await ask(launcher.path("lazy"))
    assert launcher.status()["lazy"].startswith("failed")


async def test_waiting_for_a_misconfigured_daemon_tells_its_log(launcher: Tried) -> None:
    launcher.add(launcher.unit("misconfigured"))
    with pytest.raises(OSError):
        await ask(launcher.path("misconfigured"))
    with pytest.raises(LauncherError, match="failed: no token\nargument misconfigured"):
        await launcher.wait_ready("misconfigured")


async def test_a_daemon_that_never_takes_its_connection_does_not_spin_for_ever(
    launcher: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "TRIGGER_INTERVAL", 60.0)
    launcher.add(launcher.unit("useless"))
    with pytest.raises(OSError):
        await ask(launcher.path("useless"))
    assert launcher.starts("useless") == TRIGGERS
    assert launcher.status()["useless"] == "failed: started 20 times in 60 s"


async def test_restart_keeps_the_socket_and_changes_the_process(launcher: Tried) -> None:
    await launcher.wait_ready("resident")
    before, inode = launcher.pid("resident"), launcher.path("resident").stat().st_ino
    await launcher.restart("resident")
    assert launcher.pid("resident") not in (None, before)
    assert launcher.path("resident").stat().st_ino == inode


async def test_a_daemon_that_ignores_sigterm_is_killed(launcher: Tried) -> None:
    launcher.add(launcher.unit("stubborn"))
    pid, child, *_ = await ask(launcher.path("stubborn"))
    began = time.monotonic()
    await launcher.stop()
    assert 1.0 <= time.monotonic() - began < 20
    assert is_gone(int(pid))
    assert is_gone(int(child))


async def test_stop_leaves_no_process_and_no_socket(launcher: Tried) -> None:
    pids = [int(word) for how in ("lazy", "resident") for word in (await ask(launcher.path(how)))[:2]]
    await launcher.stop()
    assert all(is_gone(pid) for pid in pids)
    assert [path for path in launcher.directory.rglob("*") if path.is_socket()] == []


async def test_a_killed_launcher_takes_everything_with_it(tmp_path: Path) -> None:
    program = tmp_path / "main.py"
    program.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_launcher import Tried, ask\n"
        "async def main():\n"
        f"    where = Path({os.fspath(tmp_path / 'set')!r})\n"
        "    made = Tried(where, api_base='http://127.0.0.1:1', token='1:x', users=[])\n"
        "    await made.start()\n"
        "    print(*await ask(made.path('lazy')), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n",
        encoding="utf-8",
    )
    here = Path(under_test.__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.fspath(here)}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        line = await asyncio.to_thread(process.stdout.readline)
        daemon, child = (int(word) for word in line.split()[:2])
        process.kill()
    await until_gone(daemon)
    await until_gone(child)


async def test_everything_it_writes_is_for_its_owner_alone(launcher: Tried) -> None:
    await ask(launcher.path("lazy"))
    for path in [launcher.directory, *launcher.directory.rglob("*")]:
        if path.name != "daemon.py":
            assert path.stat().st_mode & 0o077 == 0, path


async def test_a_directory_too_deep_for_sockets_works_all_the_same(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    made = Tried(deep, api_base="http://127.0.0.1:1", token="1:x", users=[{"telegram_id": 1, "name": "alice"}])
    async with made:
        borrowed = made.runtime
        await ask(made.path("lazy"))
    assert not borrowed.exists()


async def test_two_sets_in_one_directory_are_refused(launcher: Tried) -> None:
    second = Tried(launcher.directory, api_base="http://127.0.0.1:1", token="1:x", users=[])
    with pytest.raises(LauncherError, match="another set runs in"):
        await second.start()
    await launcher.wait_ready("resident")
    await launcher.stop()
    async with second:
        await second.wait_ready("resident")


async def test_what_a_killed_set_left_behind_is_no_obstacle(launcher: Tried) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(launcher.path("stale")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(os.fspath(launcher.runtime / "notify" / "stale"))
    launcher.add(launcher.unit("stale"))
    assert await ask(launcher.path("stale"))


async def test_it_is_refused_where_kai_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "INSTALLED", tmp_path)
    made = Tried(tmp_path / "set", api_base="http://127.0.0.1:1", token="1:x", users=[])
    with pytest.raises(LauncherError, match="Kai is installed on this host"):
        await made.start()
    assert not (tmp_path / "set").exists()


def test_the_interpreter_finds_this_copy_of_kai(tmp_path: Path) -> None:
    command, environment = python()
    found = subprocess.run(
        [*command, "-c", "import kai; print(kai.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).resolve().parent == Path(under_test.__file__).resolve().parents[1], found.stderr


def test_settings_are_merged_at_every_depth() -> None:
    base = {"agent": {"command": ["a"], "timeout": 1}, "budget": 1}
    assert merged(base, {"agent": {"command": ["b"]}}) == {"agent": {"command": ["b"], "timeout": 1}, "budget": 1}
    assert base["agent"] == {"command": ["a"], "timeout": 1}


def test_sockets_are_not_left_open_by_a_start_that_fails(tmp_path: Path) -> None:
    class Broken(Tried):
        def units(self) -> list[Unit]:
            return [self.unit("lazy"), Unit("broken", ("true",), (("front", self.runtime / ("x" * 200)),))]

    async def start() -> None:
        made = Broken(tmp_path / "set", api_base="http://127.0.0.1:1", token="1:x", users=[])
        with pytest.raises(OSError):
            await made.start()
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
            client.connect(os.fspath(made.path("lazy")))

    asyncio.run(start())
