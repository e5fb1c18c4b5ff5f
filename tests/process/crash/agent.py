"""An agent that answers at once, in Claude Code's stream-json, and writes down every prompt that it is given.

    python -I -S agent.py FILE

A prompt is `run-TAG;`, `run-TAG; slow-MILLISECONDS;` or `run-TAG; long-PARAGRAPHS;`. Its tag is one line more in FILE
before anything is said of it: that file counts the runs, independently of all that Kai says. The answer carries marks
(`ans-TAG-0.`, `ans-TAG-1.`, …) by which it is known in the chat, piece by piece. An interrupt ends a slow turn. The
tag of a continuation has a `c` behind it.

No module but three of the interpreter's own: a sweep starts it some thousand times, and `json` would double its start.
"""

import os
import select
import sys
import time

COMMON = '"session_id":"00000000-0000-4000-8000-000000000001"'
CONTINUED = "c"
PARAGRAPH = "and so on " * 70
"""Filler of a long answer: each part of it that Telegram takes holds some of these, with their marks."""
buffer = b""


def next_line(until: float | None = None) -> bytes | None:
    """The next line of input; None when the time is over. The end of input is this program's."""
    global buffer
    while b"\n" not in buffer:
        wait = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([0], [], [], wait)[0]:
            return None
        chunk = os.read(0, 1 << 16)
        if not chunk:
            sys.exit()
        buffer += chunk
    line, _, buffer = buffer.partition(b"\n")
    return line


def put(message: str) -> None:
    os.write(1, message.encode() + b"\n")


def between(line: bytes, before: str, after: str) -> str:
    """What stands between two texts, "" where they don't."""
    return line.decode("utf-8", "replace").partition(before)[2].partition(after)[0]


def control(line: bytes) -> str:
    """Answer a control request; returns what it asked for."""
    identity = between(line, '"request_id":"', '"')
    put(f'{{"type":"control_response","response":{{"subtype":"success","request_id":"{identity}","response":{{}}}}}}')
    return between(line, '"subtype":"', '"')


def say(identity: str, text: str) -> None:
    body = f'{{"id":"{identity}","role":"assistant","content":[{{"type":"text","text":"{text}"}}]}}'
    put(f'{{"type":"assistant","message":{body},"parent_tool_use_id":null,{COMMON}}}')


def end(subtype: str, text: str, *, failed: str) -> None:
    more = f'"is_error":{failed},"result":"{text}","total_cost_usd":0.0,"terminal_reason":"aborted_streaming"'
    put(f'{{"type":"result","subtype":"{subtype}",{more},{COMMON}}}')


def turn(line: bytes, runs: str) -> None:
    tag = between(line, "run-", ";") or "other"
    if b'"text":"run-' not in line:  # it is quoted: a turn that was cut off goes on
        tag += CONTINUED
    slow, long = between(line, "; slow-", ";"), between(line, "; long-", ";")
    file = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{tag}\n".encode())
    os.close(file)
    put(f'{{"type":"system","subtype":"init","model":"instant","slash_commands":[],{COMMON}}}')
    if slow:
        say(f"{tag}-0", f"Working on {tag}.")
        until = time.monotonic() + int(slow) / 1000
        while (other := next_line(until)) is not None:
            if b'"control_request"' in other and control(other) == "interrupt":
                end("error_during_execution", "", failed="true")
                return
    paragraphs = [f"ans-{tag}-{number}. {PARAGRAPH if long else ''}" for number in range(int(long or 1))]
    words = "\\n\\n".join(paragraphs)
    say(f"{tag}-1", words)
    end("success", words, failed="false")


def main() -> None:
    while True:
        line = next_line() or b""
        if b'"control_request"' in line:
            control(line)
        elif b'"user"' in line:
            turn(line, sys.argv[1])


if __name__ == "__main__":
    main()
