"""Values as YAML text on one line, for the files that `kai` writes for the operator."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

# What every YAML reader, old or new, takes for text without quotes.
_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def render(value: object) -> str:
    """A scalar, list or mapping as flow-style YAML. Raises TypeError for anything else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and value.lower() not in _WORDS
        return value if bare else json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(render(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{render(str(key))}: {render(item)}' for key, item in value.items())}}}"
    raise TypeError(f"a {type(value).__name__} has no YAML text here")
