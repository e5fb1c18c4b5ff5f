"""`kai demo` as its user meets it: one command, an answer, a chat, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kai.demo import launcher, main
from kai.demo.launcher import python

SECONDS = 60.0


def command(*arguments: str) -> list[str]:
    return [*python()[0], "-m", "kai.demo.main", *arguments]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo puts its files: short enough for sockets, and with a space in its name."""
    directory = Path(tempfile.mkdtemp(prefix="kai test "))
    yield directory
    shutil.rmtree(directory)


def environment(place: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "TMPDIR": os.fspath(place), "LANG": "C.UTF-8", **python()[1], **more}


def of_the_demo(place: Path) -> list[int]:
    """Processes whose command line or environment names the demo's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            about = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if os.fsencode(place) in about:
                found.append(int(entry.name))
    return found


def until_nothing_is_left(place: Path, *, files: bool = True) -> None:
    until = time.monotonic() + 15
    while of_the_demo(place) and time.monotonic() < until:
        time.sleep(0.05)
    assert of_the_demo(place) == []
    if files:
        assert list(place.iterdir()) == []


def say(place: Path, text: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--say", text),
        cwd=place,
        env=environment(place, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_say_prints_the_answer_alone_and_leaves_nothing(place: Path) -> None:
    done = say(place, "! echo from the shell; id -u; pwd")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["from the shell", str(os.getuid())]
    assert lines[2].startswith(f"{place}/kai-demo-")
    assert lines[-1] == "Exit status 0."
    until_nothing_is_left(place)


def test_say_answers_commands_of_the_bot_too(place: Path) -> None:
    done = say(place, "/help")
    assert done.returncode == 0
    assert "/stop" in done.stdout


def test_say_works_with_all_standard_descriptors_closed_but_output(place: Path) -> None:
    closed = 'exec "$@" <&- 2>&-'
    done = subprocess.run(
        ["/bin/sh", "-c", closed, "sh", *command("--say", "say closed")],
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "closed\n")


def test_lines_of_a_pipe_are_messages_and_all_answers_come(place: Path) -> None:
    done = subprocess.run(
        command(),
        cwd=place,
        env=environment(place),
        input="say first\n! echo second\n/stats\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "What is missing here is the isolation" in done.stdout
    for text in ("› say first\n", "first\n", "second\n\nExit status 0.\n", "Agent: "):
        assert text in done.stdout, done.stdout
    until_nothing_is_left(place)


def test_keep_leaves_the_state_where_it_was_told_to_and_a_session_goes_on_there(place: Path) -> None:
    kept = place / "kept"

    def again(text: str) -> str:
        arguments = command("--keep", os.fspath(kept), "--say", text)
        done = subprocess.run(
            arguments, cwd=place, env=environment(place), capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    again("say blue")
    assert (kept / "logs" / "kai-bot.log").exists()
    assert "say blue" in again("history")
    until_nothing_is_left(place, files=False)


def test_a_bot_that_fails_ends_it_with_its_last_words(place: Path) -> None:
    kept = place / "kept"
    (kept / "state" / "bot").mkdir(parents=True)
    (kept / "state" / "bot" / "queue.db").write_text("this is no database, whoever wrote it", encoding="utf-8")
    done = subprocess.run(
        command("--keep", os.fspath(kept)),
        cwd=place,
        env=environment(place),
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("kai demo: kai-bot")
    assert "queue.db" in done.stderr
    until_nothing_is_left(place, files=False)


def test_an_interrupt_ends_say_too(place: Path) -> None:
    arguments = command("--say", "! touch begun; sleep 290")
    arguments = ["env", "--default-signal=INT", *arguments]  # a shell's `&` has it ignored
    with subprocess.Popen(arguments, cwd=place, env=environment(place), stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 20
        while not list(place.glob("*/state/users/you/work/begun")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
    until_nothing_is_left(place)
    assert not sleeps(290)


def test_it_is_refused_where_kai_is_installed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "INSTALLED", tmp_path)
    assert main.main(["--say", "hello"]) == 1
    assert "Kai is installed on this host" in capsys.readouterr().err


# ---- in a terminal ----


class Session:
    """The chat on a pseudo-terminal."""

    def __init__(self, place: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(place)
            argv = command()
            os.execve(argv[0], argv, environment(place, TERM="xterm", COLUMNS="100", LINES="40"))
        self.text = ""

    def until(self, pattern: str, within: float = 20.0) -> str:
        """Read on until the pattern comes; what came since the last call is searched."""
        until = time.monotonic() + within
        while not (found := re.search(pattern, self.text)):
            left = until - time.monotonic()
            ready = select.select([self.fd], [], [], max(left, 0))[0]
            assert ready, f"{pattern!r} did not come: {self.text!r}"
            self.text += os.read(self.fd, 65536).decode(errors="replace")
        self.text = self.text[found.end() :]
        return found[0]

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def status(self) -> int:
        """Read to the end; the exit status."""
        with contextlib.suppress(OSError):
            while data := os.read(self.fd, 65536):
                self.text += data.decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def session(place: Path) -> Iterator[Session]:
    made = Session(place)
    made.until("Ctrl-D ends everything")
    made.until("› ")
    yield made
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(made.pid, signal.SIGKILL)
        os.waitpid(made.pid, 0)
    os.close(made.fd)


def test_an_answer_grows_on_the_screen_and_a_button_stops_it(session: Session, place: Path) -> None:
    session.type("slow 500\r")
    session.until(r"\[1\] ⏹ Stop")
    session.until("word1 word2")
    session.until(r"word1 word2 .*word8")
    session.type(":1\r")
    session.until("Stopped")
    session.type("say goes on\r")
    session.until("  goes on")
    session.type("\x04")
    assert session.status() == 0
    until_nothing_is_left(place)


def test_ctrl_c_stops_the_turn_and_not_the_demo(session: Session) -> None:
    session.type("! echo begun; sleep 300\r")
    session.until("Bash")
    session.type("\x03")
    session.until("Stopped")
    session.type("\x03")
    session.until("nothing is running; Ctrl-D ends the demo")
    session.type("\x04")
    assert session.status() == 0


def test_ctrl_d_ends_a_running_command_with_everything_else(session: Session, place: Path) -> None:
    session.type("! (trap '' TERM HUP INT; exec setsid sleep 287) & sleep 288\r")
    session.until("Bash")
    session.type("\x04")
    assert session.status() == 0
    until_nothing_is_left(place)
    assert not sleeps(287)
    assert not sleeps(288)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_cleanly(session: Session, place: Path, number: signal.Signals) -> None:
    os.kill(session.pid, number)
    assert session.status() == 128 + signal.SIGTERM
    until_nothing_is_left(place)


def test_even_killed_it_leaves_no_process(session: Session, place: Path) -> None:
    session.type("! sleep 289\r")
    session.until("Bash")
    os.kill(session.pid, signal.SIGKILL)
    session.status()
    until_nothing_is_left(place, files=False)
    assert not sleeps(289)


def sleeps(seconds: int) -> list[str]:
    """What runs of a command whose length is its name."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in found if line.strip() == f"sleep {seconds}"]


def test_the_module_can_be_run_by_the_interpreter_of_the_tests() -> None:
    done = subprocess.run(command("--help"), env=python()[1], capture_output=True, text=True, check=True)
    assert "--say" in done.stdout
    assert sys.executable in command()
