"""The MCP server's protocol: what it answers to whom, and that no message ends or bloats it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai import mcp
from kai.agent.api.jobs import Change, NewJob
from kai.agent.api.services import ServiceCall
from kai.agent.claude import OWN_TOOLS
from kai.lib import api
from kai.mcp import TOOLS, VERSIONS, Server, lines

Calls = list[tuple[Any, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the API is asked; it answers with what it was asked."""
    made: Calls = []

    def ask(*asked: Any) -> Any:
        made.append(asked)
        return list(asked)

    monkeypatch.setattr(api, "ask", ask)
    return made


class Spoken(Server):
    """A server whose calls are worked off where they come from."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        super().__init__(lambda line: self.said.append(json.loads(line)))

    def hear(self, line: bytes | None) -> list[Any]:
        self.said.clear()
        self.line(line)
        self.close()
        self.work_off()
        assert not self.calls
        self.closed = False
        return list(self.said)


def say(server: Spoken, message: object) -> Any:
    said = server.hear(json.dumps(message).encode())
    assert len(said) <= 1
    return said[0] if said else None


def request(method: str, params: object = None, number: object = 1) -> dict[str, Any]:
    made = {"jsonrpc": "2.0", "id": number, "method": method}
    return made if params is None else {**made, "params": params}


def tool(server: Spoken, called: str, /, **arguments: Any) -> Any:
    return say(server, request("tools/call", {"name": called, "arguments": arguments}))["result"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_known_version_is_agreed_on(version: str) -> None:
    answer = say(Spoken(), request("initialize", {"protocolVersion": version, "capabilities": {}}))
    assert answer["result"]["protocolVersion"] == version
    assert answer["result"]["capabilities"] == {"tools": {}}
    assert answer["id"] == 1


@pytest.mark.parametrize("version", ["2099-01-01", "", None, 7])
def test_to_another_version_the_newest_is_offered(version: object) -> None:
    assert (
        say(Spoken(), request("initialize", {"protocolVersion": version}))["result"]["protocolVersion"] == VERSIONS[0]
    )


def test_notifications_and_answers_get_no_answer() -> None:
    for message in (
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "method": "nonsense"},
        {"jsonrpc": "2.0", "id": 7, "result": {}},
        {"jsonrpc": "2.0", "id": 7, "error": {"code": 1, "message": "x"}},
    ):
        assert say(Spoken(), message) is None
    assert Spoken().hear(b"") == Spoken().hear(b"  \r") == []


@pytest.mark.parametrize(
    ("message", "code", "number"),
    [
        (5, -32600, None),
        ("x", -32600, None),
        ({}, -32600, None),
        ([], -32600, None),
        ([request("ping")], -32600, None),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": [1], "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": 3, "method": 5}, -32600, 3),
        ({"jsonrpc": "2.0", "id": 3}, -32600, 3),
        (request("server/discover"), -32601, 1),
        (request("resources/list", {}, "a"), -32601, "a"),
        (request("ping", [1]), -32602, 1),
        (request("tools/call", {}), -32602, 1),
        (request("tools/call", {"name": "rm"}), -32602, 1),
        (request("tools/call", {"name": "list_jobs", "arguments": [1]}), -32602, 1),
        (request("tools/list", {"cursor": "x"}), -32602, 1),
    ],
)
def test_what_is_wrong_gets_its_code(message: object, code: int, number: object) -> None:
    answer = say(Spoken(), message)
    assert (answer["error"]["code"], answer["id"]) == (code, number)


def test_what_is_no_json_and_what_is_too_long_gets_its_code() -> None:
    for line in (b"{", b"\xff", b"[" * 100_000, b'{"a": "\x00"}', b"NaN", '{"jsonrpc": "2.0"}'.encode("utf-16")):
        assert [each["error"]["code"] for each in Spoken().hear(line)] == [-32700]
    for wide in (None, b"[" + b"[]," * 200_000 + b"[]]"):
        assert [each["error"]["code"] for each in Spoken().hear(wide)] == [-32600]


def test_a_cancelled_call_is_not_answered_and_others_are(calls: Calls) -> None:
    server = Spoken()
    for number in (1, 2, 3):
        server.line(json.dumps(request("tools/call", {"name": "list_services"}, number)).encode())
    server.line(
        json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}).encode()
    )
    server.line(json.dumps(request("ping", number=4)).encode())
    assert [each["id"] for each in server.said] == [4]
    server.close()
    server.work_off()
    assert [each["id"] for each in server.said] == [4, 1, 3]
    assert len(calls) == 2


def test_an_id_in_use_and_too_many_calls_are_refused() -> None:
    server = Spoken()
    for number in (*range(mcp.MOST_TOGETHER), 0, mcp.MOST_TOGETHER):
        server.line(json.dumps(request("tools/call", {"name": "list_jobs"}, number)).encode())
    assert [(each["id"], each["error"]["code"]) for each in server.said] == [(0, -32600), (mcp.MOST_TOGETHER, -32600)]


def test_a_batch_is_answered_where_the_version_has_them() -> None:
    server = Spoken()
    say(server, request("initialize", {"protocolVersion": "2025-03-26"}))
    batch = [request("ping", number=1), {"jsonrpc": "2.0", "method": "notifications/x"}, request("ping", number=2)]
    (answers,) = server.hear(json.dumps([*batch, request("tools/call", {"name": "x"}, 3)]).encode())
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert server.hear(json.dumps([{"jsonrpc": "2.0", "method": "notifications/x"}]).encode()) == []


def test_every_tool_has_a_schema_that_says_what_it_takes() -> None:
    listed = say(Spoken(), request("tools/list"))["result"]["tools"]
    assert [each["name"] for each in listed] == list(TOOLS)
    for each in listed:
        schema = each["inputSchema"]
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)
        assert set(schema.get("required", [])) <= set(schema["properties"])
        assert each["description"]
        assert "readOnlyHint" in each["annotations"]


def test_the_schemas_are_those_of_the_api() -> None:
    own = {"chat_id", "user_id", "user"}
    assert set(TOOLS["schedule_job"]["inputSchema"]["properties"]) == set(NewJob.__struct_fields__) - own
    assert set(TOOLS["update_job"]["inputSchema"]["properties"]) == {"id", *Change.__struct_fields__} - own
    assert set(TOOLS["call_service"]["inputSchema"]["properties"]) == {"name", *ServiceCall.__struct_fields__} - own


def test_the_agent_need_not_ask_for_what_stays_between_it_and_its_user() -> None:
    assert set(OWN_TOOLS) == set(TOOLS) - {"call_service"}


def test_a_tool_asks_the_api(calls: Calls) -> None:
    server = Spoken()
    job = {"prompt": "x", "schedule_type": "once", "schedule_data": {"run_at": "15:00"}}
    tool(server, "schedule_job", **job)
    tool(server, "list_jobs", all=True)
    tool(server, "get_job", id=7)
    tool(server, "update_job", id="7", paused=True)
    tool(server, "delete_job", id="7/../8")
    tool(server, "send_message", text="hello")
    tool(server, "send_file", path="a.png")
    tool(server, "list_services")
    tool(server, "call_service", name="weather/?", params={"a": 1})
    assert calls == [
        ("POST", "/api/schedule", job),
        ("GET", "/api/jobs?all=true"),
        ("GET", "/api/jobs/7"),
        ("PATCH", "/api/jobs/7", {"paused": True}),
        ("DELETE", "/api/jobs/7%2F..%2F8"),
        ("POST", "/api/send-message", {"text": "hello"}),
        ("POST", "/api/send-file", {"path": "a.png"}),
        ("GET", "/api/services"),
        ("POST", "/api/services/weather%2F%3F", {"params": {"a": 1}}),
    ]


def test_a_refusal_is_a_result_that_the_model_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*asked: Any) -> Any:
        raise api.Failed(400, "schedule_data.run_at: has passed")

    monkeypatch.setattr(api, "ask", ask)
    result = tool(Spoken(), "send_message", text="x")
    assert result == {"content": [{"type": "text", "text": "schedule_data.run_at: has passed"}], "isError": True}


def test_what_is_missing_or_unknown_is_named_and_nothing_is_asked(calls: Calls) -> None:
    for name, arguments, words in (
        ("get_job", {}, "id: missing"),
        ("send_file", {"caption": "x"}, "path: missing"),
        ("list_jobs", {"user": "bob"}, "user: unknown, expected one of all"),
        ("send_message", {"text": "x", "chat_id": 1}, "chat_id: unknown"),
    ):
        result = tool(Spoken(), name, **arguments)
        assert result["isError"]
        assert result["content"][0]["text"].startswith(words)
    assert calls == []


def test_a_fault_of_its_own_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*asked: Any) -> Any:
        raise ValueError("unforeseen")

    monkeypatch.setattr(api, "ask", ask)
    answer = say(Spoken(), request("tools/call", {"name": "list_jobs"}))
    assert answer["error"]["code"] == -32603
    assert "unforeseen" in capsys.readouterr().err


def test_lines_come_whole_and_long_ones_are_left_out() -> None:
    out, into = os.pipe()
    os.write(into, b"one\n\ntwo\n" + b"x" * 500 + b"\n" + b"y" * 100 + b"\nlast")
    os.close(into)
    assert list(lines(out, longest=100)) == [b"one", b"", b"two", None, b"y" * 100, b"last"]
    os.close(out)


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)
Messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | Json,
        "id": st.integers() | st.text() | Json,
        "method": st.sampled_from(["initialize", "tools/call", "tools/list", "ping", "x"]) | Json,
        "params": st.fixed_dictionaries({}, optional={"name": st.sampled_from(sorted(TOOLS)) | Json, "arguments": Json})
        | Json,
        "result": Json,
    },
)


@given(Messages | Json, st.sampled_from(VERSIONS))
def test_whatever_comes_each_answer_is_well_formed(message: object, version: str) -> None:
    server = Spoken()
    server.version = version
    kept, api.ask = api.ask, lambda *asked, **more: {}
    try:
        said = server.hear(json.dumps(message).encode())
    finally:
        api.ask = kept
    for each in said[0] if said and isinstance(said[0], list) else said:
        assert each["jsonrpc"] == "2.0"
        assert ("result" in each) != ("error" in each)
        assert each.get("error", {}).get("code") != mcp.INTERNAL
