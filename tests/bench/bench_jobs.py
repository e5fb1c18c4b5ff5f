"""Jobs in a booted systemd (needs root): create, list, cancel; lateness of one-shots; 1,000 jobs after a boot.

Prints JSON lines. The host is a container on two cores, so figures are of its whole: scheduler, kai-timers and PID 1.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.machine.host import USERS, Host, host

LIMIT = 10000
_CLIENT = """
import json, socket, sys, time
calls = json.load(sys.stdin)
s = socket.socket(socket.AF_UNIX); s.settimeout(120); s.connect("/run/kai/scheduler.sock")
took, ids, buffer = [], [], b""
for method, parameters in calls:
    began = time.monotonic()
    s.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\\0")
    while b"\\0" not in buffer:
        piece = s.recv(1 << 20)
        if not piece: sys.exit("closed")
        buffer += piece
    message, _, buffer = buffer.partition(b"\\0")
    answer = json.loads(message)
    if answer.get("error"): sys.exit(message.decode())
    took.append(time.monotonic() - began); ids.append(answer["parameters"].get("id", 0))
json.dump([took, ids], sys.stdout)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--jobs", type=int, default=1000)
    arguments = parser.parse_args()
    with host(arguments.suite) as kai:
        kai.first_install()
        kai.configure(jobs={"limit": LIMIT})
        kai.wait_status("polling as @")
        lateness(kai, 100)
        measure(kai, arguments.jobs)


def calls(kai: Host, todo: list[tuple[str, dict[str, object]]]) -> tuple[list[float], list[int]]:
    said = kai.machine.run(["python3", "-I", "-c", _CLIENT], input=json.dumps(todo), timeout=900).out
    took, ids = json.loads(said)
    return took, ids


def tell(what: str, **figures: object) -> None:
    print(json.dumps({"bench": what, **figures}), flush=True)


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1),
        "max_ms": round(1000 * ordered[-1], 1),
    }


def lateness(kai: Host, count: int) -> None:
    """One-shots at whole seconds, two seconds apart from the last one: from the due time to the message's arrival."""
    first = int(time.time()) + 30
    due = {number: first + number for number in range(count)}
    todo: list[tuple[str, dict[str, object]]] = [
        ("kai.Scheduler.Add", {
            "name": f"n{number}", "prompt": f"late-{number}.", "schedule_type": "once", "user": "alice",
            "schedule_data": json.dumps({"run_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))}),
        })
        for number, at in due.items()
    ]  # fmt: skip
    calls(kai, todo)
    began: dict[int, float] = {}
    while len(began) < count and time.time() < first + count + 60:
        for message in kai.telegram.messages(USERS["alice"]):
            found = re.search(r"late-(\d+)\.", message.text or "") if message.by_bot else None
            if found:
                began.setdefault(int(found[1]), message.at)
        time.sleep(0.5)
    offset = time.time() - time.monotonic()  # the stand-in's clock is the monotonic one
    late = [at + offset - due[number] for number, at in began.items()]
    tell("lateness of one-shots", arrived=len(late), of=count, **spread(late))


def measure(kai: Host, count: int) -> None:
    add = {"prompt": "x", "schedule_type": "daily", "schedule_data": '{"times": ["03:33"]}', "user": "alice"}
    took, ids = calls(kai, [("kai.Scheduler.Add", {**add, "name": f"job {number}"}) for number in range(count)])
    tell("create", jobs=count, per_second=round(count / sum(took), 1), **spread(took))
    listing, _ = calls(kai, [("kai.Scheduler.List", {"user": "alice"})] * 20)
    tell("list", jobs=count, per_second=round(20 / sum(listing), 1), **spread(listing))
    kai.machine.wait_for(
        lambda: kai.active("kai-scheduler.service") == "inactive", 120, what="the idle scheduler leaves"
    )
    tell(
        "idle scheduler",
        processes=0,
        pid1_kib=int(re.findall(r"VmRSS:\s+(\d+)", kai.machine.read("/proc/1/status"))[0]),
    )
    kai.machine.reboot()
    shown = 'systemctl list-timers --all --plain --no-legend "kai-job@*" | wc -l'
    kai.machine.wait_for(lambda: int(kai.machine.run(shown).out) >= count, 120, what="all timers are back")
    kai.machine.wait_for(
        lambda: kai.machine.systemctl("show", "-P", "ActiveState", "kai-scheduler").out.strip() != "activating", 60
    )
    script = (
        "systemctl show -P ExecMainStartTimestampMonotonic kai-scheduler; "
        "systemctl show -P ActiveEnterTimestampMonotonic kai-scheduler; "
        "for unit in $(systemctl list-units --plain --no-legend --type=timer 'kai-job@*' | cut -d' ' -f1); "
        "do systemctl show -P ActiveEnterTimestampMonotonic $unit; done | sort -n | tail -1"
    )
    began, ready, last = (int(word) for word in kai.machine.run(script, timeout=300).out.split())
    tell(
        "restored after boot", jobs=count, ready_s=round((ready - began) / 1e6, 2), all_s=round((last - began) / 1e6, 2)
    )
    removal, _ = calls(kai, [("kai.Scheduler.Remove", {"id": job}) for job in ids])
    tell("cancel", jobs=count, per_second=round(count / sum(removal), 1), **spread(removal))


if __name__ == "__main__":
    main()
