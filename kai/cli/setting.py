"""Sets single keys of kai.yaml in place, comments left as they are: `python -I -m kai.cli.setting FILE KEY VALUE…`.

install.sh uses it for its options. The edited text must differ from the old by exactly the key, else the file stays.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from kai.cli.yamltext import render
from kai.config import ConfigError
from kai.config.source import parse, read


def main(arguments: list[str]) -> int:
    path, key, *words = arguments
    try:
        put(Path(path), key, words if key == "agent.command" else words[0])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def put(path: Path, key: str, value: object) -> None:
    """Give `key` (SECTION.NAME) that value. Raises ConfigError when the file is written so that it can't be edited."""
    section, name = key.split(".")
    text = read(path) or ""
    before = _mapping(text, path)
    wanted = copy.deepcopy(before)
    wanted[section] = {**(wanted.get(section) or {}), name: value}
    if wanted == before:
        return
    after = _edited(text, section, name, f"  {name}: {render(value)}\n")
    try:
        right = _mapping(after, path) == wanted
    except ConfigError:
        right = False
    if not right:
        raise ConfigError(str(path), key, f"can't be set here: write {name}: {render(value)} below {section}: by hand")
    _replace(path, after)


def _edited(text: str, section: str, name: str, line: str) -> str:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start = next((number for number, row in enumerate(lines) if re.match(rf"{section}:\s*(#.*)?$", row)), None)
    if start is None:
        return "".join([*lines, f"\n{section}:\n", line])
    for number in range(start + 1, len(lines)):
        if re.match(rf"  {name}:", lines[number]):
            return "".join([*lines[:number], line, *lines[number + 1 :]])
        if re.match(r"[^\s#]", lines[number]):
            break
    return "".join([*lines[: start + 1], line, *lines[start + 1 :]])


def _mapping(text: str, path: Path) -> dict[str, Any]:
    data = parse(text, os.fspath(path))
    return data if isinstance(data, dict) else {}


def _replace(path: Path, text: str) -> None:
    """The new file at once, with the owner and mode of the old one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        old = path.stat()
        os.chown(new, old.st_uid, old.st_gid)
        new.chmod(old.st_mode & 0o777)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
