"""What a person is shown before he says yes, and what his yes then covers; whoever wrote the request may be lying."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kai.agent import questions
from kai.agent.backend import Context
from kai.agent.permission import (
    LONGEST_DETAIL,
    LONGEST_PATTERN,
    MOST_PATTERNS,
    NOTHING,
    detail,
    exact,
    is_rule,
    patterns,
    question,
    rules,
    visible,
)
from kai.agent.questions import LONGEST, LONGEST_ID, MOST_ANSWERED, MOST_OPEN, Questions
from kai.interfaces import Event

CONTEXT = Context(user="alice", door=("door",), command=("claude",), workspace=Path("/srv/demo"), ask=True)
BLANKS = "\u034f\u115f\u1160\u17b4\u180b\u2800\u3164\ufe00\ufe0f\uffa0\U000e0100"
HIDDEN = "\x00\x07\x0b\x0c\r\x1b\x1c\x7f\x85\xa0\xad\u061c\u200b\u200d\u200e\u2028\u202e\u2066\ufeff\U000e0041" + BLANKS


def request(tool: Any, *suggestions: Any, **given: Any) -> dict[str, Any]:
    return {"tool_name": tool, "input": given, "permission_suggestions": list(suggestions)}


def bash(command: str, *suggestions: Any) -> dict[str, Any]:
    return request("Bash", *suggestions, command=command, description="Lists the files")


def proposal(*contents: str, tool: str = "Bash", **more: Any) -> dict[str, Any]:
    found = [{"toolName": tool, "ruleContent": content} for content in contents]
    return {"type": "addRules", "rules": found, "behavior": "allow", "destination": "localSettings"} | more


# ---- what is shown ----

EDIT = {"file_path": "/srv/a.py", "old_string": "one\ntwo\nthree", "new_string": "one\n2\nthree"}
LONG = "\n".join(f"line {n}" for n in range(30))


@pytest.mark.parametrize(
    ("tool", "given", "shown"),
    [
        ("Bash", {"command": "ls -la\n\tpwd", "description": "Harmless", "timeout": 5}, ["ls -la", "    pwd"]),
        (
            "Bash",
            {"command": "ls", "run_in_background": True, "dangerouslyDisableSandbox": True},
            ["ls", "run_in_background: true", "dangerouslyDisableSandbox: true"],
        ),
        ("Edit", EDIT, ["/srv/a.py", " one", "-two", "+2", " three"]),
        ("Edit", EDIT | {"replace_all": True}, ["/srv/a.py", " one", "-two", "+2", " three", "replace_all: true"]),
        ("Edit", EDIT | {"new_string": ""}, ["/srv/a.py", "-one", "-two", "-three"]),
        ("Edit", EDIT | {"new_string": EDIT["old_string"]}, ["/srv/a.py"]),
        (
            "Edit",
            {"file_path": "/a", "old_string": LONG, "new_string": LONG.replace("line 4\n", "x\n").replace("29", "y")},
            [
                *("/a", " line 2", " line 3", "-line 4", "+x", " line 5", " line 6", "…"),
                *(" line 27", " line 28", "-line 29", "+line y"),
            ],
        ),
        (
            "MultiEdit",
            {
                "file_path": "/a",
                "edits": [
                    {"old_string": "a", "new_string": "b", "replace_all": True},
                    {"old_string": "", "new_string": "c"},
                ],
            },
            ["/a", "-a", "+b", "replace_all: true", "…", "+c"],
        ),
        ("Write", {"file_path": "/a", "content": "one\n\ttwo\n"}, ["/a", "+one", "+    two"]),
        ("Write", {"file_path": "/a", "content": ""}, ["/a"]),
        (
            "NotebookEdit",
            {"notebook_path": "/n", "cell_id": "c1", "new_source": "x", "edit_mode": "insert"},
            ["/n", "+x", "cell_id: c1", "edit_mode: insert"],
        ),
        (
            "NotebookEdit",
            {"notebook_path": "/n", "cell_id": "c1", "edit_mode": "delete"},
            ["/n", "cell_id: c1", "edit_mode: delete"],
        ),
        ("WebFetch", {"url": "https://e.org/", "prompt": "Sum up"}, ["url: https://e.org/", "prompt: Sum up"]),
        ("ExitPlanMode", {"plan": "1. this\n2. that"}, ["1. this", "2. that"]),
        ("ExitPlanMode", {}, [NOTHING]),
        (
            "mcp__mail__send",
            {"to": ["bob", "eve"], "mail": {"subject": "hi", "text": "a\nb: c", "urgent": None}, "n": 1.5, "": "x"},
            [
                *("to:", "    1: bob", "    2: eve"),
                *("mail:", "    subject: hi", "    text: a", "        b: c", "    urgent: null"),
                *("n: 1.5", ": x"),
            ],
        ),
    ],
)
def test_a_question_shows_what_would_happen(tool: str, given: dict[str, Any], shown: list[str]) -> None:
    assert detail(tool, given).split("\n") == shown


def test_a_question_has_all_that_is_needed_to_decide() -> None:
    asked = question(bash("rm -rf build\nls", proposal("rm -rf *", "ls *")), "q7")
    assert asked == Event(
        kind="approval",
        approval="q7",
        tool="Bash",
        summary="rm -rf build ls",
        detail="rm -rf build\nls",
        patterns=["Bash(rm -rf *)", "Bash(ls *)"],
        running=True,
    )


@pytest.mark.parametrize("sign", HIDDEN)
def test_a_character_that_nobody_sees_is_shown_by_its_number(sign: str) -> None:
    number = f"⟨U+{ord(sign):04X}⟩"
    assert visible(f"a{sign}b") == f"a{number}b"
    asked = question(bash(f"rm a{sign}b"), "q1")
    assert asked.detail == asked.summary == f"rm a{number}b"
    assert asked.patterns[0].startswith(f"Bash: rm a{number}b #")
    for tool, fields in (
        ("Write", {"file_path": f"/x{sign}y", "content": f"one{sign}-two"}),
        ("Edit", {"file_path": f"/x{sign}y", "old_string": "", "new_string": f"one{sign}-two"}),
    ):
        assert detail(tool, fields).split("\n") == [f"/x{number}y", f"+one{number}-two"]
    assert number in question(request(f"mcp{sign}", **{f"a{sign}": f"{sign}b"}), "q1").tool
    assert detail("mcp", {f"a{sign}": f"{sign}b"}) == f"a{number}: {number}b"


def test_a_name_of_several_lines_stays_on_its_line() -> None:
    assert detail("Write", {"file_path": "/a\n+harmless", "content": "evil"}).split("\n") == [
        "/a⟨U+000A⟩+harmless",
        "+evil",
    ]
    assert detail("mcp", {"a\nurl": "x"}) == "a url: x"


@pytest.mark.parametrize("tool", ["Bash", "Write", "Edit", "mcp__x"])
def test_what_is_left_out_is_counted_where_it_is_missing(tool: str) -> None:
    value = "a" * 2000 + "b" * 8000 + "; the very end"
    fields = {"command": value, "file_path": "/a", "content": value, "old_string": "", "new_string": value}
    needed = {"Bash": ["command"], "Write": ["file_path", "content"], "Edit": ["file_path", "old_string", "new_string"]}
    shown = detail(tool, {name: fields[name] for name in needed.get(tool, ["command"])})
    assert "aaaa… (" in shown or "bbbb… (" in shown
    assert " characters are not shown) …bbb" in shown
    assert shown.endswith("bbb; the very end")
    assert len(shown) < LONGEST_DETAIL + 100


def test_a_tools_other_fields_are_shown_however_long_the_first_is() -> None:
    assert detail("Bash", {"command": "a" * 99_999, "dangerouslyDisableSandbox": True}).endswith(
        "dangerouslyDisableSandbox: true"
    )


@pytest.mark.parametrize(
    ("tool", "field"),
    [("Bash", "command"), ("Edit", "new_string"), ("Write", "content"), ("MultiEdit", ""), ("x", "y")],
)
@pytest.mark.parametrize(("piece", "size"), [("x", 16 << 20), ("\u202e", 1 << 20), ("\n", 1 << 20), ("a\n", 1 << 20)])
def test_megabytes_are_shown_in_part_and_at_once(tool: str, field: str, piece: str, size: int) -> None:
    huge = piece * (size // len(piece))
    fields: dict[str, Any] = {"file_path": "/a", "old_string": "b\n" * 1000}
    fields |= {"edits": [{"old_string": "x", "new_string": huge}]} if tool == "MultiEdit" else {field: huge}
    began = time.monotonic()
    asked = question(request(tool, **fields), "q1")
    assert time.monotonic() - began < 3  # 0.2 s on an idle machine
    assert len(asked.detail) < 12 * LONGEST_DETAIL
    assert "are not shown" in asked.detail
    assert len(asked.patterns[0]) <= LONGEST_PATTERN + 34


def test_a_thousand_small_changes_at_once_are_shown_at_once() -> None:
    lines = ["\n".join(str(n * step % 3) for n in range(199)) for step in (1, 2)]
    edits = [{"old_string": lines[0], "new_string": lines[1]}] * 1000
    began = time.monotonic()
    assert "are not shown" in detail("MultiEdit", {"file_path": "/a", "edits": edits})
    assert time.monotonic() - began < 2  # 5 to 10 s if each were compared


def test_a_change_that_would_take_minutes_to_compare_is_shown_uncompared() -> None:
    old, new = ("\n".join(str(sign * n % 150) for n in range(20_000)) for sign in (1, -1))
    began = time.monotonic()
    shown = detail("Edit", {"file_path": "/a", "old_string": old, "new_string": new})
    assert time.monotonic() - began < 1
    assert "are not shown" in shown


WRONG: list[Any] = [
    None,
    True,
    7,
    -1.5,
    "",
    "text",
    [],
    [7, None, []],
    {},
    {"": ""},
    {"a": {"b": [{}]}},
    [{"rules": 7}],
    [[[]]],
]


@pytest.mark.parametrize(
    "tool", ["Bash", "Edit", "MultiEdit", "Write", "NotebookEdit", "ExitPlanMode", "x", "", 7, None]
)
def test_fields_of_wrong_types_are_shown_as_they_are(tool: Any) -> None:
    names = ("command", "file_path", "notebook_path", "edits", "plan")
    others = ("old_string", "new_string", "content", "new_source")
    for wrong, other in itertools.product(WRONG, repeat=2):
        fields = dict.fromkeys(names, wrong) | dict.fromkeys(others, other)
        asked = question({"tool_name": tool, "input": fields, "permission_suggestions": other}, "q1")
        assert asked.detail
        assert "{'" not in asked.detail + asked.summary
        assert len(asked.patterns) == 1
        question({"tool_name": tool, "input": wrong, "permission_suggestions": [{"type": "addRules"}, other]}, "q1")


# ---- what a yes for the session covers ----


@pytest.mark.parametrize(
    ("tool", "content"),
    [
        *(("Bash", content) for content in ("touch x *", "npm run:*", "git commit -m *", "./build *")),
        *(("Read", "//etc/**"), ("WebFetch", "domain:example.org")),
    ],
)
def test_rules_that_mean_what_they_show_are_taken(tool: str, content: str) -> None:
    assert rules(bash("x", proposal(content, tool=tool))) == [{"toolName": tool, "ruleContent": content}]
    assert patterns(bash("x", proposal(content, tool=tool))) == [f"{tool}({content})"]
    assert is_rule(f"{tool}({content})")


@pytest.mark.parametrize(
    "content",
    [
        *("", " ", "*", ":*", " *", "**", "//**", "/**", "* x", "*/x"),  # everything, or nearly
        *("python3 -c 'print(2*3)'", "echo 2*3", "a * b", "a* *", "touch 'a*'", "x:*:*"),  # any text stands for a star
        *("sh", "python3 -", "xargs rm -f x", "./build", "a", "//etc/**"),  # any part of a pipe: `echo anything | sh`
        *("x) Bash(*", "a(b", "a)b", "f()", "a\\", "a\\*"),  # brackets begin another rule, backslashes hide them
        *("a\u202eb", "a\nb", "a\x00", "a\u200b", "x" * 304),  # not what is shown
    ],
)
def test_rules_that_allow_more_than_they_show_are_not_taken(content: str) -> None:
    asked = bash("echo hello", proposal(content))
    assert rules(asked) == []
    assert patterns(asked) == ["Bash: echo hello"]
    assert not is_rule(f"Bash({content})")


@pytest.mark.parametrize(
    "suggestion",
    [
        {"type": "addRules", "behavior": "allow", "rules": [{"toolName": "WebSearch"}]},
        proposal("ls *", behavior="deny"),
        proposal("ls *", type="setMode"),
        proposal("ls *", tool="Bash(*) Edit"),
        proposal("ls *", tool=""),
        proposal("ls *", rules=[{"toolName": ["Bash"], "ruleContent": "ls *"}]),
        proposal("make -j4", "make install *"),  # of `make -j4 && make install`
        proposal("ls *", "echo 2*3"),  # one of two: what it is worth without the other, nobody knows
        proposal(*(f"ls {n} *" for n in range(MOST_PATTERNS + 1))),
    ],
)
def test_a_proposal_that_is_no_good_leaves_just_this_request(suggestion: dict[str, Any]) -> None:
    assert patterns(bash("ls", suggestion)) == ["Bash: ls"]


def test_of_a_rule_only_its_two_fields_go_back_to_the_agent() -> None:
    suggestion = proposal(rules=[{"toolName": "Bash", "ruleContent": "ls *", "more": "than that"}])
    assert rules(bash("ls", suggestion)) == [{"toolName": "Bash", "ruleContent": "ls *"}]


@pytest.mark.parametrize(
    ("tool", "given", "pattern"),
    [
        ("Bash", {"command": "git push origin main", "description": "x", "timeout": 7}, "Bash: git push origin main"),
        ("Write", {"file_path": "/a b", "content": "x"}, "Write: /a b"),
        ("Edit", {"file_path": "/a", "old_string": "x", "new_string": "y"}, "Edit: /a"),
        ("NotebookEdit", {"notebook_path": "/n", "cell_id": "c", "new_source": "x"}, "NotebookEdit: /n"),
        ("WebFetch", {"url": "https://e.org", "prompt": "x"}, "WebFetch: https://e.org"),
        ("WebSearch", {"query": "tea"}, "WebSearch: tea"),
    ],
)
def test_just_this_is_told_in_plain_words_where_one_field_says_it(
    tool: str, given: dict[str, Any], pattern: str
) -> None:
    assert exact(request(tool, **given)) == pattern


def test_requests_that_differ_never_count_as_the_same() -> None:
    evil = bash("echo a\nrm -rf b")
    mark = exact(evil).rpartition(" #")[2]
    edit = {"file_path": "/a", "old_string": "x", "new_string": "y"}
    different = [
        evil,
        bash("echo a rm -rf b"),
        bash(f"echo a rm -rf b #{mark}"),  # shown as the first one is, and harmless
        bash("echo a\trm -rf b"),
        bash("echo a\u202erm -rf b"),
        bash("echo a⟨U+202E⟩rm -rf b"),
        bash("x" * 400),
        bash("x" * 401),
        bash("x" * 399 + "y"),
        bash("y: z"),
        request("Bash: y", command="z", description="Lists the files"),
        request("Bash: y", command="z"),
        request("Bash", command="y: z", dangerouslyDisableSandbox=True),
        request("Bash", command=["y: z"]),
        request("Bash"),
        bash("{}"),
        bash('["Bash", {}]'),
        request("Edit", **edit),
        request("Edit", **edit | {"file_path": "/b"}),
        request("mcp", **{"": "x", "real": "/a"}),
        request("mcp", **{"": "x", "real": "/b"}),
        request("mcp", n=1),
        request("mcp", n=1.0),
        request("mcp", n=True),
        request("mcp", n="1"),
        request("mcp", a={"b": "c"}),
        request("mcp", a="b: c"),
        request(""),
        request(" "),
        request("t" * 81),
        request("t" * 82),
    ]
    found = [exact(each) for each in different]
    assert len(set(found)) == len(found)
    assert not any(is_rule(pattern) for pattern in found)
    assert not any("{" in pattern for pattern in found if pattern != "Bash: {}" and "[" not in pattern)


def test_what_does_not_matter_for_the_pattern_does_not_change_it() -> None:
    first = request("Bash", command="make", description="Builds", timeout=5)
    assert exact(first) == exact(request("Bash", command="make", run_in_background=True)) == "Bash: make"
    assert exact(request("mcp", a=1, b=2)) == exact(request("mcp", b=2, a=1))


signs = st.one_of(st.characters(), st.sampled_from("#:(){}*\\ \n\t\r" + HIDDEN))
texts = st.text(signs, max_size=40)
soups = st.lists(st.sampled_from(["Bash", ": ", "ls", " #", "0" * 32, "\n", " ", "\u202e", "{}", "(", ")", "*"]))
words = st.one_of(texts, soups.map("".join))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)
tools = st.one_of(
    st.sampled_from(["Bash", "Edit", "MultiEdit", "Write", "NotebookEdit", "WebFetch", "WebSearch", "Read"]), words
)
names = st.sampled_from(
    [
        "command",
        "file_path",
        "content",
        "old_string",
        "new_string",
        "edits",
        "notebook_path",
        "new_source",
        "url",
        "query",
    ]
)
inputs = st.dictionaries(st.one_of(names, words), st.one_of(words, values), max_size=5)
suggestions = st.one_of(
    values,
    st.lists(st.builds(lambda rules: proposal() | {"rules": rules}, st.lists(st.fixed_dictionaries({}, optional={
        "toolName": st.one_of(tools, values), "ruleContent": st.one_of(words, values),
    })))),
)  # fmt: skip
requests = st.builds(
    lambda tool, given, proposed: {"tool_name": tool, "input": given, "permission_suggestions": proposed},
    st.one_of(tools, values), st.one_of(inputs, values), suggestions,
)  # fmt: skip


def seen(line: str) -> bool:
    return line.isprintable() and not set(line) & set(BLANKS)


@settings(deadline=None)
@given(requests)
def test_whatever_is_asked_the_question_can_be_read_and_has_an_end(asked: dict[str, Any]) -> None:
    found = question(asked, "q1")
    assert found.detail
    assert all(seen(line) for line in found.detail.split("\n"))
    assert seen(found.tool)
    assert seen(found.summary)
    assert all(seen(pattern) for pattern in found.patterns)
    assert len(found.tool) <= 800
    assert len(found.summary) <= 200
    assert len(found.detail) < 12 * LONGEST_DETAIL
    assert 1 <= len(found.patterns) <= MOST_PATTERNS
    assert all(len(pattern) <= 400 for pattern in found.patterns)
    taken = rules(asked)
    assert found.patterns == [f"{rule['toolName']}({rule['ruleContent']})" for rule in taken] or not taken
    assert is_rule(found.patterns[0]) is bool(taken)


@settings(deadline=None)
@given(st.tuples(tools, inputs), st.tuples(tools, inputs))
def test_two_requests_share_a_pattern_only_if_they_are_the_same(
    one: tuple[str, dict[str, Any]], two: tuple[str, dict[str, Any]]
) -> None:
    first, second = ({"tool_name": tool, "input": given} for tool, given in (one, two))
    if exact(first) == exact(second):
        assert one[0] == two[0]
        main = {"Bash": "command", "Write": "file_path", "Read": "file_path", "WebFetch": "url", "WebSearch": "query"}
        main |= {"NotebookEdit": "notebook_path", "Edit": "file_path", "MultiEdit": "file_path"}
        key = main.get(one[0])
        same = json.dumps(one[1], sort_keys=True) == json.dumps(two[1], sort_keys=True)
        assert same or (key and one[1][key] == two[1][key])


@settings(deadline=None)
@given(st.text(signs.filter(lambda sign: sign not in "\t⟨"), min_size=1, max_size=60))
def test_a_command_can_be_told_from_what_is_shown(command: str) -> None:
    shown = detail("Bash", {"command": command})
    for sign in set(command):
        shown = shown.replace(f"⟨U+{ord(sign):04X}⟩", sign)
    assert shown == command


# ---- questions that wait ----


class Desk:
    """A `Questions` with what it sent."""

    def __init__(self, **context: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self.questions = Questions(msgspec.structs.replace(CONTEXT, **context), self.sent.append)

    def ask(self, request_id: str, asked: dict[str, Any], *, listening: bool = True) -> Event | None:
        return self.questions.take(request_id, {"subtype": "can_use_tool", **asked}, listening=listening)

    def answer(self, approval: str, **how: Any) -> None:
        self.questions.answer(approval, **{"allow": True, "remember": False, "message": "", **how})

    @property
    def decisions(self) -> list[tuple[str, str]]:
        found = [message["response"] for message in self.sent]
        return [(each["request_id"], each["response"]["behavior"]) for each in found]


def test_a_decision_goes_to_the_request_that_it_was_asked_for_with_what_was_shown() -> None:
    desk = Desk()
    first, second = desk.ask("a", bash("ls")), desk.ask("b", bash("pwd"))
    assert first
    assert second
    desk.answer(second.approval)
    desk.answer(first.approval, allow=False, message="no")
    assert desk.decisions == [("b", "allow"), ("a", "deny")]
    assert desk.sent[0]["response"]["response"]["updatedInput"] == bash("pwd")["input"]
    assert desk.sent[1]["response"]["response"]["message"] == "no"
    for approval in (first.approval, second.approval, "q99", ""):
        desk.answer(approval)
    assert len(desk.sent) == 2


def test_a_request_that_comes_twice_is_one_question() -> None:
    desk = Desk()
    asked = desk.ask("a", bash("ls"))
    assert asked
    assert desk.ask("a", bash("rm -rf /")) is None
    desk.answer(asked.approval)
    assert [message["response"]["response"]["updatedInput"]["command"] for message in desk.sent] == ["ls"]


def test_what_is_remembered_is_answered_at_once_and_its_rules_are_told() -> None:
    desk = Desk(allowed=("Bash: pwd",))
    asked = desk.ask("a", bash("touch x", proposal("touch x *")))
    assert asked
    desk.answer(asked.approval, remember=True)
    (update,) = desk.sent[0]["response"]["response"]["updatedPermissions"]
    assert update == proposal("touch x *", destination="session")
    assert desk.ask("b", bash("touch x")) is None
    assert desk.ask("c", bash("pwd")) is None
    assert desk.ask("d", bash("touch x y")) is not None
    assert desk.decisions == [("a", "allow"), ("b", "allow"), ("c", "allow")]


def test_what_was_allowed_once_is_not_remembered() -> None:
    desk = Desk()
    for _ in range(2):
        asked = desk.ask("a", bash("touch x", proposal("touch x *")))
        assert asked
        desk.answer(asked.approval)
    assert all("updatedPermissions" not in message["response"]["response"] for message in desk.sent)


def test_nobody_is_asked_where_nobody_can_answer() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    desk = Desk()
    assert desk.ask("a", bash("ls"), listening=False) is None
    assert desk.ask("b", bash("x" * LONGEST)) is None
    assert desk.ask("c", request("mcp", deep=deep)) is None
    assert desk.ask("d", request("AskUserQuestion", questions=[])) is None
    assert desk.decisions == [(name, "deny") for name in "abcd"]
    assert desk.ask("x" * (LONGEST_ID + 1), bash("ls")) is None
    assert len(desk.sent) == 4


def test_what_was_not_offered_is_refused() -> None:
    desk = Desk()
    assert desk.questions.take("a", {"subtype": "hook_callback"}, listening=True) is None
    assert desk.questions.take("b", {}, listening=True) is None
    without = Desk(ask=False)
    assert without.ask("c", bash("ls")) is None
    answers = [message["response"] for message in (*desk.sent, *without.sent)]
    assert [(each["request_id"], each["subtype"]) for each in answers] == [(name, "error") for name in "abc"]


def test_more_questions_than_a_person_can_overlook_are_denied() -> None:
    desk = Desk()
    found = [desk.ask(f"r{n}", bash("ls")) for n in range(MOST_OPEN + 3)]
    assert sum(asked is not None for asked in found) == MOST_OPEN
    assert desk.decisions == [(f"r{MOST_OPEN + n}", "deny") for n in range(3)]
    assert len({asked.approval for asked in found if asked}) == MOST_OPEN
    assert desk.questions.withdraw("r99") is None
    back = desk.questions.withdraw("r3")
    assert back == Event(kind="approval", approval=found[3].approval, answer="withdrawn")  # type: ignore[union-attr]
    assert desk.questions.withdraw("r3") is None
    assert desk.ask("r100", bash("ls")) is not None


def test_at_the_end_of_a_turn_nothing_waits_any_more() -> None:
    desk = Desk()
    asked = desk.ask("a", bash("ls"))
    assert asked
    desk.questions.end()
    assert desk.decisions == [("a", "deny")]
    desk.answer(asked.approval)
    assert desk.questions.withdraw("a") is None
    assert len(desk.sent) == 1


def test_an_agent_that_asks_without_end_gets_no_more_answers_until_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MOST_ANSWERED > 10_000 * 200  # no honest agent comes near
    monkeypatch.setattr(questions, "MOST_ANSWERED", 10_000)
    desk = Desk()
    for n in range(1000):
        desk.ask(f"r{n}", bash("ls"), listening=False)
    assert 10 < len(desk.sent) < 200
    before = len(desk.sent)
    asked = desk.ask("mine", bash("ls"))
    assert asked
    desk.answer(asked.approval)  # a person's own decision always goes out
    assert len(desk.sent) == before + 1
    desk.questions.begin()
    desk.ask("after", bash("ls"), listening=False)
    assert len(desk.sent) == before + 2
