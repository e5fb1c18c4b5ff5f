"""The README's first command on a fresh Debian, as an ordinary user without sudo."""

from __future__ import annotations

from tests.machine.container import Machine


def test_the_demo_says_what_is_missing_and_then_answers(machine: Machine) -> None:
    machine.run("useradd --create-home --shell=/bin/bash newcomer")
    machine.push_checkout("/home/newcomer/my kai")
    machine.run(["chown", "-R", "newcomer:", "/home/newcomer/my kai"])
    demo = ["./install.sh", "--demo", "--say", "! id -un"]

    def run(check: bool) -> str:
        result = machine.run(demo, user="newcomer", cwd="/home/newcomer/my kai", check=check, timeout=300)
        return result.out if check else result.out + result.err

    assert "apt-get install" in run(check=False), "a fresh Debian has no Python, and the demo may not install one"
    machine.run("apt-get update -q && apt-get install -y -q --no-install-recommends python3 python3-venv", timeout=300)
    assert run(check=True).startswith("newcomer"), "nothing but the answer is on standard output"
    again = run(check=True)
    assert "newcomer" in again
    assert machine.run("pgrep -u newcomer -l", check=False).out == "", "nothing is left behind"
    assert machine.run("ls /etc/kai /opt/kai /var/lib/kai", check=False).code != 0
