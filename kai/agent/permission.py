"""Claude Code's question whether it may use a tool: what a person has to see to decide, and what a yes covers.

Whoever wrote the request may want to be misread, so nothing is hidden: characters that nobody sees are shown by their
numbers, what is left out is counted where it is missing, and no two requests count as the same unless they are.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator

from kai.agent.stream import Message, part, parts, summary, text
from kai.interfaces import Event

LONGEST_DETAIL = 3000
"""Characters of what is to be run or changed."""
LONGEST_VALUE = 500
"""Characters of one field of a tool that isn't known here."""
LONGEST_NAME = 80
LONGEST_PATTERN = 300
MOST_PATTERNS = 10
MOST_COMPARED = 400
"""Lines on one side of a change that are compared; of what is longer, all old and then all new lines are shown."""
DEEPEST = 4
NOTHING = "(nothing else is told about it)"
_UNSEEN = re.compile(  # what counts as printable and yet shows nothing
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_RULE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,79}\((?=[^*()]*[^*()\s/:])[^*()\\]{1,300}(?: \*|:\*|/\*\*)?\)")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,79}: .+(?<! #[0-9a-f]{32})")
_ARGUMENT = {
    "Bash": ("command", {"description", "timeout", "run_in_background"}),
    "Read": ("file_path", {"offset", "limit", "pages"}),
    "Edit": ("file_path", {"old_string", "new_string", "replace_all"}),
    "MultiEdit": ("file_path", {"edits"}),
    "Write": ("file_path", {"content"}),
    "NotebookEdit": ("notebook_path", {"cell_id", "cell_type", "edit_mode", "new_source"}),
    "WebFetch": ("url", {"prompt"}),
    "WebSearch": ("query", set[str]()),
}
"""Where one field tells all that a person would want to have remembered, and the fields that may differ."""
_SHOWN = {
    "Bash": ("command", {"description", "timeout"}),
    "Edit": ("file_path", {"old_string", "new_string"}),
    "MultiEdit": ("file_path", {"edits"}),
    "Write": ("file_path", {"content"}),
    "NotebookEdit": ("notebook_path", {"new_source"}),
    "ExitPlanMode": ("plan", set[str]()),
}
"""Tools whose detail is more than a list of fields: the one that must be there, and those that the list leaves out."""


def question(request: Message, approval: str) -> Event:
    """The event for a `can_use_tool` request; `approval` becomes its id."""
    tool = text(request, "tool_name")
    given = part(request, "input")
    return Event(
        kind="approval",
        approval=approval,
        tool=visible(tool[:LONGEST_NAME]),
        summary=_summary(tool, given),
        detail=detail(tool, given),
        patterns=patterns(request),
        running=True,
    )


def detail(tool: str, given: Message) -> str:
    """The whole of it, readable: a command, a difference, a text; and its other fields, a line each."""
    main, told = _SHOWN.get(tool, ("", set[str]()))
    if not main or not isinstance(given.get(main), str):  # a tool that isn't known, or not as it is known
        return _readable("\n".join(_fields(given, set()))) or NOTHING
    shown = given[main] if tool in ("Bash", "ExitPlanMode") else "\n".join(_change(tool, given))
    others = "\n".join(_fields(given, {main, *told}))
    return "\n".join(_readable(piece) for piece in (shown, others) if piece) or NOTHING


def rules(request: Message) -> list[Message]:
    """The CLI's own rules that it proposes for this request, [] where none fits.

    They mean what they mean to the CLI alone: `Bash(touch x *)` is proposed for `touch x > /etc/passwd` too, and
    still doesn't allow it. Taken is only what means to a person what it means to the CLI: for `python -c 'f(2*3)'` it
    proposes just that, and then its `*` stands for any program; brackets can end a rule on the command line and begin
    another; a rule without an argument allows all that the tool can do; and one for a whole command, `Bash(sh)` for
    `printf x | sh`, holds for that part of any pipe: after it, `echo anything | sh` runs unasked.
    """
    found = [
        {"toolName": text(rule, "toolName"), "ruleContent": text(rule, "ruleContent")}
        for suggestion in parts(request, "permission_suggestions")
        if suggestion.get("type") == "addRules" and suggestion.get("behavior") == "allow"
        for rule in parts(suggestion, "rules")
    ]
    return found if len(found) <= MOST_PATTERNS and all(is_rule(_written(rule)) for rule in found) else []


def patterns(request: Message) -> list[str]:
    """What "this session" would allow: the CLI's rules, `Tool(rule)`, or just this, `Tool: argument`."""
    return [_written(rule) for rule in rules(request)] or [exact(request)]


def is_rule(pattern: str) -> bool:
    """Whether a pattern is for the CLI to understand."""
    if pattern.startswith("Bash(") and not pattern.endswith((" *)", ":*)")):
        return False
    return _RULE.fullmatch(pattern) is not None and visible(pattern) == pattern


def exact(request: Message) -> str:
    """This request and no other. What can't be shown as it is gets a fingerprint, so that no two count as the same."""
    tool, given = text(request, "tool_name"), part(request, "input")
    field, others = _ARGUMENT.get(tool, ("", set[str]()))
    one = text(given, field) if field and given.keys() <= {field, *others} else ""
    pattern = f"{tool}: {one}"
    if one and len(pattern) <= LONGEST_PATTERN and _PLAIN.fullmatch(pattern) and visible(pattern) == pattern:
        return pattern
    whole = json.dumps([tool, one or given], sort_keys=True)
    shown = f"{visible(tool[:LONGEST_NAME])}: {_summary(tool, given)}"[:LONGEST_PATTERN]
    return f"{shown.rstrip()} #{hashlib.sha256(whole.encode()).hexdigest()[:32]}"


def visible(line: str) -> str:
    """One line in which each character is seen: what isn't, or turns the order of others round, as `⟨U+202E⟩`."""
    if line.isprintable() and not _UNSEEN.search(line):
        return line
    return "".join(c if c.isprintable() and not _UNSEEN.match(c) else f"⟨U+{ord(c):04X}⟩" for c in line)


def _summary(tool: str, given: Message) -> str:
    known = {key: value for key, value in given.items() if isinstance(value, str)}
    return summary(tool, {key: visible(re.sub(r"[\n\t]", " ", value[:1000])) for key, value in known.items()})


def _written(rule: Message) -> str:
    return f"{rule['toolName']}({rule['ruleContent']})"


def _change(tool: str, given: Message) -> Iterator[str]:
    """A change of a file: its name, then its lines. Each begins with a mark, so that none can pass for the name."""
    path = text(given, _SHOWN[tool][0])
    yield visible(_ends(path, LONGEST_VALUE))
    match tool:
        case "Edit":
            yield from _difference(text(given, "old_string"), text(given, "new_string"))
        case "MultiEdit":
            compared = 0
            for number, edit in enumerate(parts(given, "edits")):
                old, new = text(edit, "old_string"), text(edit, "new_string")
                compared += max(old.count("\n"), new.count("\n")) + 1
                yield from ["…"] if number else []
                yield from _difference(old, new, most=MOST_COMPARED if compared <= MOST_COMPARED else 0)
                yield from _fields(edit, {"old_string", "new_string"})
        case _:
            new = text(given, "content" if tool == "Write" else "new_source")
            yield from (f"+{line}" for line in _lines(new.removesuffix("\n")))


def _difference(old: str, new: str, most: int = MOST_COMPARED) -> Iterator[str]:
    before, after = _lines(old), _lines(new)
    if max(len(before), len(after)) > most:
        yield from (f"-{line}" for line in before)
        yield from (f"+{line}" for line in after)
        return
    differences = difflib.unified_diff(before, after, lineterm="", n=2)
    for number, line in enumerate(list(differences)[2:]):
        if not line.startswith("@@"):
            yield line
        elif number:
            yield "…"


def _lines(whole: str) -> list[str]:
    return whole.split("\n") if whole else []


def _fields(given: Message, told: set[str], depth: int = 0) -> Iterator[str]:
    """A line for each field that isn't `told` yet; what is inside another and a text's further lines are set in."""
    for key, value in given.items():
        if key not in told:
            name = _ends(key, LONGEST_NAME).replace("\n", " ")
            yield from _field(f"{'    ' * depth}{name}:", value, depth)


def _field(name: str, value: object, depth: int) -> Iterator[str]:
    if isinstance(value, dict | list) and value and depth < DEEPEST:
        yield name
        inside = value if isinstance(value, dict) else {str(number): item for number, item in enumerate(value, 1)}
        yield from _fields(inside, set(), depth + 1)
    else:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{name} " + _ends(shown, LONGEST_VALUE).replace("\n", "\n" + "    " * (depth + 1))


def _readable(shown: str) -> str:
    return "\n".join(visible(line) for line in _ends(shown, LONGEST_DETAIL).replace("\t", "    ").split("\n"))


def _ends(shown: str, most: int) -> str:
    """Two thirds from its beginning and one from its end: nobody may approve what he doesn't know to be missing."""
    left = len(shown) - most
    if left <= 0:
        return shown
    end = most // 3
    return f"{shown[: most - end]}… ({left} characters are not shown) …{shown[-end:]}"
