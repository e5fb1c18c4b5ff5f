"""kai-inner, run as it is run behind sudo: a request on standard input, an exit status, one line on stderr."""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kai.inner
from kai import inner
from kai.demo.launcher import python

Done = subprocess.CompletedProcess[bytes]


def run(request: object, *arguments: str, rest: bytes = b"", environment: dict[str, str] | None = None) -> Done:
    """One run. A request in bytes is sent as it is."""
    interpreter, needed = python()
    line = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
    return subprocess.run(
        [*interpreter, "-m", "kai.inner", *arguments],
        input=line + rest,
        capture_output=True,
        env={**needed, **(environment or {})},
        timeout=30,
        check=False,
    )


def told(done: Done) -> str:
    """The one line on stderr."""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("kai-inner: ")
    return line.removeprefix("kai-inner: ")


def agent(tmp_path: Path, *command: str, **more: Any) -> dict[str, Any]:
    environment = {"HOME": os.fspath(tmp_path), **more.pop("environment", {})}
    return {"verb": "agent", "command": command, "workspace": os.fspath(tmp_path), "environment": environment, **more}


def seen(request: dict[str, Any], **environment: str) -> dict[str, str]:
    """The environment that the agent gets."""
    done = run({**request, "command": ["/usr/bin/env", "-0"]}, environment=environment)
    assert done.returncode == 0, done.stderr
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)


# ---- the request ----


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "ended before"),
        (b'{"verb":"agent"', "ended before"),
        (b"\n", "not JSON"),
        (b"agent\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"[]\n", "expected a JSON object"),
        (b"{}\n", "verb: expected one of agent, find, list, mkworkspace, read"),
        (b'{"verb":["agent"]}\n', "verb"),
        (b'{"verb":"shell"}\n', "verb"),
        (b'{"verb":"agent","workspace":"/"}\n', r"agent.command: expected a list of texts"),
        (b'{"verb":"agent","command":[],"workspace":"/"}\n', r"agent.command"),
        (b'{"verb":"agent","command":[""],"workspace":"/"}\n', r"agent.command"),
        (b'{"verb":"agent","command":"true","workspace":"/"}\n', r"agent.command"),
        (b'{"verb":"agent","command":["true",7],"workspace":"/"}\n', r"agent.command"),
        (b'{"verb":"agent","command":["a\\u0000b"],"workspace":"/"}\n', r"agent.command"),
        (b'{"verb":"agent","command":["a\\ud800b"],"workspace":"/"}\n', r"agent.command"),
        (b'{"verb":"agent","command":["true"],"workspace":"work"}\n', r"agent.workspace: expected an absolute path"),
        (b'{"verb":"agent","command":["true"],"workspace":"/","environment":[]}\n', r"agent.environment"),
        (b'{"verb":"agent","command":["true"],"workspace":"/","environment":{"A B":"1"}}\n', r"A-Za-z_"),
        (b'{"verb":"agent","command":["true"],"workspace":"/","environment":{"A":1}}\n', r"a text for A"),
        (b'{"verb":"agent","command":["true"],"workspace":"/","environment":{"\xc3\xa9":"1"}}\n', r"A-Za-z_"),
        (b'{"verb":"agent","command":["true"],"workspace":"/","model_door":"sock"}\n', r"agent.model_door"),
        (b'{"verb":"agent","command":["true"],"workspace":"/","uid":0}\n', "unknown field 'uid'"),
        (b'{"verb":"read","root":"/","path":"","limit":1}\n', r"read.path"),
        (b'{"verb":"read","root":"/","path":"x","limit":true}\n', r"read.limit"),
        (b'{"verb":"read","root":"/","path":"x","limit":-1}\n', r"read.limit"),
        (b'{"verb":"find","base":"srv","name":"x"}\n', r"find.base: expected an absolute path"),
        (b'{"verb":"find","base":"/srv","name":""}\n', r"find.name"),
        (b'{"verb":"find","base":"/srv","name":"a\\u0000b"}\n', r"find.name"),
        (b'{"verb":"find","base":"/srv","name":"a\\ud800b"}\n', r"find.name"),
        (b'{"verb":"find","base":"/srv","name":["a"]}\n', r"find.name"),
        (b'{"verb":"list","base":"/srv","limit":-1}\n', r"list.limit"),
        (b'{"verb":"mkworkspace","path":"/x"}\n', r"unknown field 'path'"),
        (b'{"verb":"mkworkspace","base":"x","name":"x"}\n', r"mkworkspace.base"),
        (b" " * (inner.MAX_REQUEST + 1) + b"\n", "longer than 1048576 bytes"),
    ],
)
def test_a_bad_request_is_refused_with_what_was_expected(line: bytes, reason: str) -> None:
    done = run(line)
    assert done.returncode == inner.EX_DATAERR
    assert reason in told(done)
    assert done.stdout == b""


def test_arguments_are_refused() -> None:
    done = run({"verb": "agent"}, "agent")
    assert (done.returncode, done.stdout) == (inner.EX_USAGE, b"")
    assert "no arguments" in told(done)


def test_control_characters_of_a_request_do_not_reach_the_terminal() -> None:
    done = run({"verb": "agent", "\x1b[31m": 1, "command": ["true"], "workspace": "/"})
    assert b"\x1b" not in done.stderr


# ---- agent ----


def test_what_follows_the_first_line_is_the_agents(tmp_path: Path) -> None:
    rest = bytes(range(256)) * 20_000
    done = run(agent(tmp_path, "cat"), rest=rest)
    assert (done.returncode, done.stdout, done.stderr) == (0, rest, b"")


def test_the_agents_exit_is_the_doors(tmp_path: Path) -> None:
    assert run(agent(tmp_path, "sh", "-c", "exit 42")).returncode == 42
    assert run(agent(tmp_path, "sh", "-c", "kill -TERM $$")).returncode == -15


def test_the_environment_is_the_accounts_and_the_requests_and_nothing_else(tmp_path: Path) -> None:
    request = agent(tmp_path, environment={"EXTRA": "with = and\nnewline"})
    environment = seen(request, SECRET="of the supervisor", LD_PRELOAD="", NOTIFY_SOCKET="/x", SUDO_USER="kai-u-alice")
    account = pwd.getpwuid(os.getuid())
    assert environment == {
        "PATH": f"{tmp_path}/.local/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": os.fspath(tmp_path),
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "EXTRA": "with = and\nnewline",
    }
    del request["environment"]
    assert seen({**request, "workspace": "/"})["HOME"] == account.pw_dir


def test_the_agent_begins_in_its_workspace_as_after_a_login(tmp_path: Path) -> None:
    status = "import os, signal; print(os.getcwd(), oct(os.umask(0)), sorted(os.listdir('/proc/self/fd')))"
    lines = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('SigIgn', 'SigBlk'))])"
    interpreter, _ = python()
    command = [*interpreter, "-c", f"{status}; {lines}"]
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        done = subprocess.run(
            [*interpreter, "-m", "kai.inner"],
            input=json.dumps(agent(tmp_path, *command)).encode() + b"\n",
            stdout=subprocess.PIPE,
            env=python()[1],
            pass_fds=[write_end],
            umask=0o077,
            restore_signals=False,
            check=True,
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    where, signals = done.stdout.decode().splitlines()
    assert where == f"{tmp_path} 0o22 ['0', '1', '2', '3']"  # 3 is the listing's own
    ignored_by_python_itself = 1 << 12 | 1 << 24  # SIGPIPE, SIGXFSZ
    blocked, ignored = (int(word, 16) for word in eval(signals))
    assert blocked == 0
    assert ignored & ~ignored_by_python_itself == 0


def test_sigpipe_ends_the_agents_programs_as_it_should(tmp_path: Path) -> None:
    done = run(agent(tmp_path, "sh", "-c", "yes | head -1; grep SigIgn /proc/self/status"))
    assert done.stdout.split() == [b"y", b"SigIgn:", b"0000000000000000"]


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("no-such-agent", inner.NOT_FOUND, "not found in"),
        ("/no/such/agent", inner.NOT_FOUND, "/no/such/agent: not found for"),
        ("/etc", inner.NOT_FOUND, "not found"),
        ("plain", inner.NOT_EXECUTABLE, "may not execute it"),
        ("headless", inner.NOT_EXECUTABLE, "its interpreter is missing"),
        ("binary", inner.NOT_EXECUTABLE, "Exec format error"),
        ("./agent", inner.EX_DATAERR, "a name or an absolute path"),
        ("sub/agent", inner.EX_DATAERR, "a name or an absolute path"),
    ],
)
def test_a_command_that_cannot_run_is_told_apart(tmp_path: Path, command: str, status: int, reason: str) -> None:
    for name, content in (("plain", "text"), ("headless", "#!/no/interpreter\n"), ("binary", "\x7fELFx")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o644 if name == "plain" else 0o755)
    path = os.fspath(tmp_path / command) if (tmp_path / command).is_file() else command
    done = run(agent(tmp_path, path))
    assert done.returncode == status
    assert reason in told(done)


def test_a_workspace_cannot_bring_the_agent(tmp_path: Path) -> None:
    (tmp_path / "claude").write_text("#!/bin/sh\necho trap\n")
    (tmp_path / "claude").chmod(0o755)
    done = run(agent(tmp_path, "claude", environment={"PATH": ":.:relative"}))
    assert (done.returncode, done.stdout) == (inner.NOT_FOUND, b"")


def test_the_agent_of_the_accounts_own_home_comes_first(tmp_path: Path) -> None:
    own = tmp_path / ".local/bin/true"
    own.parent.mkdir(parents=True)
    own.write_text("#!/bin/sh\necho own\n")
    own.chmod(0o755)
    assert run(agent(tmp_path, "true")).stdout == b"own\n"
    assert run(agent(tmp_path, "~/.local/bin/true")).stdout == b"own\n"


def test_a_missing_workspace_is_told_apart(tmp_path: Path) -> None:
    for path in ("gone", "file"):
        (tmp_path / "file").touch()
        done = run({**agent(tmp_path, "true"), "workspace": os.fspath(tmp_path / path)})
        assert done.returncode == inner.EX_NOINPUT
        assert f"workspace {tmp_path / path}" in told(done)


# ---- the way to the model ----

DOOR = "/run/kai/model.sock"


def test_without_a_login_the_agent_is_sent_to_the_door_without_a_key(tmp_path: Path) -> None:
    environment = seen(agent(tmp_path, model_door=DOOR))
    assert environment["ANTHROPIC_UNIX_SOCKET"] == DOOR
    assert environment["ANTHROPIC_BASE_URL"] == "http://model.invalid"
    assert environment["ANTHROPIC_API_KEY"] == "dummy"
    assert not any(name.startswith("ANTHROPIC") for name in seen(agent(tmp_path)))


def test_the_accounts_own_key_goes_before_the_door(tmp_path: Path) -> None:
    key = tmp_path / ".config/kai/model-key"
    key.parent.mkdir(parents=True)
    key.write_text("sk-own\n")
    key.chmod(0o600)
    environment = seen(agent(tmp_path, model_door=DOOR))
    assert environment["ANTHROPIC_API_KEY"] == "sk-own"
    assert "ANTHROPIC_UNIX_SOCKET" not in environment


def test_the_agents_own_login_goes_before_the_door(tmp_path: Path) -> None:
    for directory, given in ((".claude", {}), ("other", {"CLAUDE_CONFIG_DIR": os.fspath(tmp_path / "other")})):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / ".credentials.json").write_text("{}")
        environment = seen(agent(tmp_path, model_door=DOOR, environment=given))
        assert not any(name.startswith("ANTHROPIC") for name in environment)
        (tmp_path / directory / ".credentials.json").unlink()


def test_what_the_configuration_says_of_the_model_goes_before_all(tmp_path: Path) -> None:
    given = {"ANTHROPIC_AUTH_TOKEN": "t"}
    environment = seen(agent(tmp_path, model_door=DOOR, environment=given))
    assert {name for name in environment if name.startswith("ANTHROPIC")} == {"ANTHROPIC_AUTH_TOKEN"}
    given = {"ANTHROPIC_BASE_URL": "https://gateway"}
    environment = seen(agent(tmp_path, model_door=DOOR, environment=given))
    assert {name for name in environment if name.startswith("ANTHROPIC")} == {"ANTHROPIC_BASE_URL"}


@pytest.mark.parametrize("fault", ["readable by others", "a link", "a pipe", "empty", "two lines", "too long"])
def test_a_key_file_that_is_not_as_it_should_be_is_refused_and_not_shown(tmp_path: Path, fault: str) -> None:
    key = tmp_path / ".config/kai/model-key"
    key.parent.mkdir(parents=True)
    if fault == "a link":
        key.symlink_to("/etc/passwd")
    elif fault == "a pipe":
        os.mkfifo(key, 0o600)
    else:
        key.write_text({"empty": "\n", "two lines": "sk-a\nsk-b\n", "too long": "k" * 5000}.get(fault, "sk-own"))
        key.chmod(0o644 if fault == "readable by others" else 0o600)
    done = run(agent(tmp_path, "true"))
    assert done.returncode in (inner.EX_NOPERM, inner.EX_DATAERR)
    assert str(key) in told(done)
    assert b"sk-" not in done.stderr


# ---- workspaces ----


def asked(verb: str, base: Path, name: str = "", **more: Any) -> dict[str, Any]:
    """The answer to a request, whose error and status go together."""
    done = run_beneath(verb, base, name, **more)
    assert done.stderr == b""
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def run_beneath(verb: str, base: Path, name: str = "", **more: Any) -> Done:
    request = {"verb": verb, "base": os.fspath(base), **({"name": name} if name else {}), **more}
    done = run(request, environment={"GIT_DIR": "/elsewhere"})
    assert done.returncode == (1 if b'"error"' in done.stdout else 0)
    return done


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base with workspaces, and with everything else that could stand there."""
    made = tmp_path / "base"
    (made / "site/api").mkdir(parents=True)
    (made / "über uns").mkdir()
    (made / ".hidden").mkdir()
    (made / "file").touch()
    (tmp_path / "outside").mkdir()
    (made / "out").symlink_to(tmp_path / "outside")
    (made / "up").symlink_to("..")
    (made / "inside").symlink_to("site")
    (made / "loop").symlink_to("loop")
    os.mkfifo(made / "pipe")
    return made


HOSTILE = [
    ("..", 403),
    ("../outside", 403),
    ("site/../../outside", 403),
    ("site/../../base/site", 403),
    ("/etc", 403),
    ("//etc", 403),
    ("out", 403),
    ("out/x", 403),
    ("up/outside", 403),
    ("inside", 403),
    ("inside/api", 403),
    ("loop", 403),
    ("pipe", 403),
    ("pipe/x", 403),
    ("file/x", 403),
    ("x" * 300, 403),
    ("x/" * 3000, 403),
    ("/proc/self/root/etc", 403),
    ("~", 404),
    ("new\nline", 404),
    ("\x1b[31m", 404),
    ("gone/x", 404),
]


@pytest.mark.parametrize("name", ["site", "site/", "site/api", "site/../site", "./site", "über uns", "."])
def test_a_workspace_is_found_beneath_its_base(base: Path, name: str) -> None:
    assert asked("find", base, name) == {}


@pytest.mark.parametrize(("name", "code"), [*HOSTILE, ("file", 403)])
def test_what_is_no_workspace_of_the_base_is_not_found(base: Path, name: str, code: int) -> None:
    answer = asked("find", base, name)
    assert answer["code"] == code
    assert str(base.parent) not in answer["error"]


def test_a_base_may_be_reached_over_links_and_its_absence_is_told_apart(base: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("base")
    assert asked("find", tmp_path / "link", "site") == {}
    assert asked("mkworkspace", tmp_path / "link", "new") == {"git": True}
    assert (base / "new").is_dir()
    for gone in (tmp_path / "gone", base / "file", base / "loop", base / "pipe", Path("/") / ("x" * 5000)):
        for verb, more in (("find", {"name": "x"}), ("mkworkspace", {"name": "x"}), ("list", {"limit": 9})):
            assert asked(verb, gone, **more)["code"] == 424


def test_workspaces_are_listed_without_links_files_and_hidden_ones(base: Path) -> None:
    (base / "new\nline").mkdir()
    Path(os.fsdecode(os.fsencode(base) + b"/\xff\xfe")).mkdir()
    assert asked("list", base, limit=100) == {"names": ["new\nline", "site", "über uns"]}
    assert asked("list", base, limit=2) == {"names": ["new\nline", "site"]}
    assert asked("list", base / "site/api", limit=100) == {"names": []}


@pytest.mark.parametrize("name", ["new", "site/new", "site/api/new", "ü b"])
def test_a_workspace_is_made_with_a_repository(base: Path, name: str) -> None:
    assert asked("mkworkspace", base, name) == {"git": True}
    assert (base / name / ".git/HEAD").is_file()
    assert stat.S_IMODE((base / name).stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, code) for name, code in HOSTILE if code == 403 and "/" in name.strip("/")),
        *((name, 409) for name in ("site", "out", "inside", "loop", "pipe", "file")),
        ("gone/x", 404),
        ("x" * 300, 403),
        ("..", 403),
        ("site/..", 403),
        ("site/.", 403),
        ("site/", 403),
    ],
)
def test_a_workspace_that_cannot_be_made_changes_nothing(base: Path, name: str, code: int) -> None:
    before = sorted(base.parent.rglob("*"))
    assert asked("mkworkspace", base, name)["code"] == code
    assert sorted(base.parent.rglob("*")) == before


def test_a_workspace_without_git_is_made_all_the_same(base: Path, tmp_path: Path) -> None:
    code = f"""
import kai.inner as inner
def find(program, environment): raise inner.Refusal(inner.NOT_FOUND, "no git")
inner.find = find
inner.mkworkspace({{"base": {os.fspath(base)!r}, "name": "new"}})"""
    interpreter, environment = python()
    done = subprocess.run([*interpreter, "-c", code], capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout) == {"git": False}
    assert list((base / "new").iterdir()) == []


def test_nothing_is_made_outside_while_names_are_swapped_for_links(base: Path, tmp_path: Path) -> None:
    """The directory above the new one turns into a link that leads out and back, all the time."""
    swap = f"""
import os
os.chdir({os.fspath(base)!r})
os.symlink({os.fspath(tmp_path / "outside")!r}, "trap")
print(flush=True)
while True:
    os.rename("site", "aside"); os.rename("trap", "site")
    os.rename("site", "trap"); os.rename("aside", "site")
"""
    with subprocess.Popen([sys.executable, "-c", swap], stdout=subprocess.PIPE) as swapping:
        assert swapping.stdout
        try:
            swapping.stdout.readline()
            done = [run_beneath("mkworkspace", base, f"site/n{number}") for number in range(15)]
        finally:
            swapping.kill()
    assert {json.loads(each.stdout).get("code", 0) for each in done} <= {0, 403, 404}
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_repository_is_made_in_the_new_directory_wherever_its_name_leads_by_then(base: Path, tmp_path: Path) -> None:
    code = f"""
import os, kai.inner as inner
git = inner._git_init
def swapped():
    os.rename({os.fspath(base / "new")!r}, {os.fspath(base / "moved")!r})
    os.symlink({os.fspath(tmp_path / "outside")!r}, {os.fspath(base / "new")!r})
    return git()
inner._git_init = swapped
inner.mkworkspace({{"base": {os.fspath(base)!r}, "name": "new"}})"""
    interpreter, environment = python()
    subprocess.run([*interpreter, "-c", code], capture_output=True, check=True, env=environment)
    assert list((tmp_path / "outside").iterdir()) == []
    assert (base / "moved/.git/HEAD").is_file()


# ---- read ----


def read(root: Path, path: str, limit: int = 1 << 20) -> tuple[dict[str, Any], bytes]:
    done = run({"verb": "read", "root": os.fspath(root), "path": path, "limit": limit})
    head, _, data = done.stdout.partition(b"\n")
    answer = json.loads(head)
    assert done.stderr == b""
    assert done.returncode == (1 if "error" in answer else 0)
    return answer, data


def test_a_file_beneath_the_root_is_sent_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/ü\n.bin").write_bytes(data)
    for path in ("sub/ü\n.bin", f"{tmp_path}/sub/ü\n.bin", "sub/../sub/ü\n.bin"):
        assert read(tmp_path, path) == ({"size": len(data), "name": "ü\n.bin"}, data)
    (tmp_path / "empty").touch()
    assert read(tmp_path, "empty", limit=0) == ({"size": 0, "name": "empty"}, b"")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing", 404),
        ("file/below", 404),
        ("../outside", 403),
        ("sub/../../outside", 403),
        ("/etc/passwd", 403),
        ("link", 403),
        ("inside", 403),
        ("dirlink/file", 403),
        ("sub", 403),
        (".", 403),
        ("pipe", 403),
        ("socket", 403),
        ("/dev/zero", 403),
        ("large", 413),
        ("x" * 300, 403),
        ("x/" * 3000, 403),
        ("new\nline", 404),
    ],
)
def test_what_is_no_file_of_the_root_is_refused(tmp_path: Path, path: str, code: int) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret")
    (root / "file").write_text("x")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "inside").symlink_to("file")
    (root / "dirlink").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    (root / "large").write_bytes(bytes(101))
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(root)
        listening.bind("socket")
        os.chdir(before)
        answer, data = read(root, path, limit=100)
    assert (answer["code"], data) == (code, b"")
    assert "secret" not in answer["error"]


def test_a_root_that_is_a_link_is_refused_and_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_text("x")
    (tmp_path / "link").symlink_to("root")
    answer, data = read(tmp_path / "link", "file")
    assert (answer["code"], data) == (403, b"")
    assert "is a symbolic link" in answer["error"]


def test_a_reader_that_goes_away_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    interpreter, environment = python()
    with subprocess.Popen(
        [*interpreter, "-m", "kai.inner"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        request = {"verb": "read", "root": os.fspath(tmp_path), "path": "file", "limit": 1 << 21}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 1


def test_it_imports_little_because_every_start_of_an_agent_waits_for_it() -> None:
    heavy = "{'typing', 'pathlib', 'ctypes', 'subprocess', 'msgspec'}"
    code = f"import sys; sys.path.append(sys.argv[1]); import kai.inner; print({heavy} & set(sys.modules))"
    root = str(Path(kai.inner.__file__).parents[1])
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code, root], capture_output=True, check=True)
    assert found.stdout == b"set()\n"
