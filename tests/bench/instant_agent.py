"""An agent that answers at once and writes down when: what is measured around it is Kai's own time.

One JSON line per turn in the file given by --times: when its process began, when it had answered `initialize`, when
the prompt was there and when the result was written; seconds on CLOCK_MONOTONIC.
"""

import json
import os
import sys
import time
from pathlib import Path


def began() -> float:
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def put(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    times = sys.argv[sys.argv.index("--times") + 1]
    session, ready = "00000000-0000-4000-8000-000000000001", 0.0
    for line in sys.stdin:
        seen = time.monotonic()
        message = json.loads(line)
        if message["type"] == "control_request":
            answer = {"subtype": "success", "request_id": message["request_id"], "response": {}}
            put({"type": "control_response", "response": answer})
            ready = ready or time.monotonic()
            continue
        content = message["message"]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        common = {"session_id": session, "uuid": message.get("uuid", "")}
        put({"type": "system", "subtype": "init", "model": "instant", "slash_commands": [], **common})
        result = {"is_error": False, "result": f"re: {text}", "total_cost_usd": 0.0, "num_turns": 1}
        block = {"id": "m", "role": "assistant", "content": [{"type": "text", "text": f"re: {text}"}]}
        put({"type": "assistant", "message": block, "parent_tool_use_id": None, **common})
        put({"type": "result", "subtype": "success", **result, **common})
        with Path(times).open("a", encoding="utf-8") as file:
            row = {"text": text, "began": began(), "ready": ready, "prompt": seen, "result": time.monotonic()}
            file.write(json.dumps(row) + "\n")


main()
