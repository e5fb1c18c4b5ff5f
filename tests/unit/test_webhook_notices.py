"""From payloads to notices: what people read, whatever somebody wrote into GitHub."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.config import Config, Kai, User
from kai.webhook.notices import TABLE, Ignored, Notice, notice
from kai.webhook.routing import allowed, may_add, recipients
from kai.webhook.text import BadPayload, clean, cut, excerpt, generic_text, line

REPO = {"full_name": "Acme/Site", "html_url": "https://github.com/Acme/Site", "owner": {"login": "Acme"}}
PULL = {"number": 7, "title": "Mend it", "html_url": "https://github.com/Acme/Site/pull/7", "user": {"login": "Ann"}}
ISSUE = {"number": 3, "title": "Broken", "html_url": "https://github.com/Acme/Site/issues/3", "user": {"login": "Ann"}}
COMMIT = {"id": "0123456789", "message": "first line\n\nmore", "url": "https://github.com/c/0"}
RUN = {
    "name": "CI",
    "run_number": 9,
    "conclusion": "failure",
    "head_branch": "main",
    "html_url": "https://github.com/r",
}


def made(event: str, **payload: Any) -> Notice:
    found = notice(event, json.dumps({"repository": REPO, "sender": {"login": "Bob"}, **payload}).encode())
    assert isinstance(found, Notice), found
    return found


def text(event: str, **payload: Any) -> str:
    return "".join(span.text for span in made(event, **payload).spans)


@pytest.mark.parametrize(
    ("event", "payload", "expected"),
    [
        ("push", {"ref": "refs/heads/main", "commits": [COMMIT]},
         "⬆ Bob pushed 1 commit to main (Acme/Site)\n• 0123456 first line"),
        ("push", {"ref": "refs/heads/a/b", "commits": [COMMIT] * 7, "forced": True},
         "⬆ Bob force-pushed 7 commits to a/b (Acme/Site)" + "\n• 0123456 first line" * 5 + "\n… and 2 more"),
        ("push", {"ref": "refs/heads/x", "deleted": True}, "⬆ Bob deleted branch x (Acme/Site)"),
        ("push", {"ref": "refs/tags/v1", "created": True}, "⬆ Bob created tag v1 (Acme/Site)"),
        ("pull_request", {"action": "opened", "pull_request": {**PULL, "body": "why\n\n\nhow"}},
         "🔀 Bob opened PR #7 Mend it (Acme/Site)\nwhy\nhow"),
        ("pull_request", {"action": "opened", "pull_request": {**PULL, "draft": True}},
         "🔀 Bob opened draft PR #7 Mend it (Acme/Site)"),
        ("pull_request", {"action": "closed", "pull_request": {**PULL, "merged": True}},
         "🟣 Bob merged PR #7 Mend it (Acme/Site)"),
        ("pull_request", {"action": "closed", "pull_request": PULL}, "🚫 Bob closed PR #7 Mend it (Acme/Site)"),
        ("pull_request", {"action": "review_requested", "pull_request": PULL, "requested_reviewer": {"login": "Cy"}},
         "👀 Bob asks for a review of PR #7 Mend it (Acme/Site)\nof Cy"),
        ("pull_request", {"action": "review_requested", "pull_request": PULL, "requested_team": {"name": "core"}},
         "👀 Bob asks for a review of PR #7 Mend it (Acme/Site)\nof core"),
        ("issues", {"action": "opened", "issue": {**ISSUE, "body": None}}, "🟢 Bob opened issue #3 Broken (Acme/Site)"),
        ("issues", {"action": "closed", "issue": {**ISSUE, "state_reason": "not_planned"}},
         "✔ Bob closed issue #3 Broken (Acme/Site)\nas not planned"),
        ("issues", {"action": "assigned", "issue": ISSUE, "assignee": {"login": "Cy"}},
         "👤 Bob assigned issue #3 Broken (Acme/Site)\nto Cy"),
        ("issue_comment", {"action": "created", "issue": ISSUE, "comment": {"body": "me too"}},
         "💬 Bob commented on #3 Broken (Acme/Site)\nme too"),
        ("pull_request_review", {"action": "submitted", "pull_request": PULL, "review": {"state": "approved"}},
         "✅ Bob approved #7 Mend it (Acme/Site)"),
        ("pull_request_review", {"action": "submitted", "pull_request": PULL,
                                 "review": {"state": "changes_requested", "body": "no"}},
         "❌ Bob requested changes on #7 Mend it (Acme/Site)\nno"),
        ("pull_request_review", {"action": "submitted", "pull_request": PULL, "review": {"state": "commented"}},
         "💬 Bob reviewed #7 Mend it (Acme/Site)"),
        ("release", {"action": "published", "release": {"tag_name": "v1", "name": "One", "prerelease": True}},
         "🚀 Bob published One (pre-release) (Acme/Site)"),
        ("workflow_run", {"action": "completed", "workflow_run": RUN}, "🔴 CI #9 failed on main (Acme/Site)"),
        ("ping", {"zen": "x"}, "🔔 The webhook of Acme/Site reaches Kai."),
    ],
)  # fmt: skip
def test_each_event_reads_as_it_should(event: str, payload: dict[str, Any], expected: str) -> None:
    assert text(event, **payload) == expected


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("star", {"action": "created"}), ("check_run", {}),
        ("release", {"action": "created", "release": {"tag_name": "v"}}),
        ("pull_request", {"action": "labeled", "pull_request": PULL}), ("issues", {"action": "edited", "issue": ISSUE}),
        ("workflow_run", {"action": "completed", "workflow_run": {**RUN, "conclusion": "success"}}),
        ("workflow_run", {"action": "requested", "workflow_run": {**RUN, "conclusion": None}}),
        ("issue_comment", {"action": "deleted", "issue": ISSUE, "comment": {}}),
        ("pull_request_review", {"action": "edited", "pull_request": PULL, "review": {"state": "commented"}}),
    ],
)  # fmt: skip
def test_what_tells_nobody_anything_is_ignored_with_a_reason(event: str, payload: dict[str, Any]) -> None:
    found = notice(event, json.dumps({"repository": REPO, "sender": {"login": "Bob"}, **payload}).encode())
    assert isinstance(found, Ignored)
    assert event in found.reason


def test_the_people_it_concerns_are_named_once_and_in_small_letters() -> None:
    pull = {**PULL, "assignees": [{"login": "Cy"}, None], "requested_reviewers": [{"login": "DEE"}]}
    found = made("pull_request", action="opened", pull_request=pull)
    assert found.logins == {"ann", "bob", "cy", "dee", "acme"}
    assert found.repository == "acme/site"


def test_deleted_accounts_and_missing_parts_do_no_harm() -> None:
    found = made("issues", action="opened", issue={**ISSUE, "user": None, "body": None}, sender=None)
    assert found.logins == {"acme"}
    assert "somebody opened issue" in "".join(span.text for span in found.spans)
    assert made("ping", repository=None, organization={"login": "Org"}).repository == ""


@pytest.mark.parametrize(
    "url", ["http://github.com/x", "javascript:alert(1)", "https://a b", "https://x\n", "tg://x", ""]
)
def test_only_plain_https_links_are_links(url: str) -> None:
    found = made("issues", action="opened", issue={**ISSUE, "html_url": url})
    assert [span.url for span in found.spans if span.url] == []


def test_nothing_of_a_title_is_markup_and_nothing_hides_in_it() -> None:
    hostile = (
        "<b>x</b> [y](https://evil) \u202egnp.exe\u2066 \u200b\u200d\u2060\ufeff z\n\nq \U000e0041 e" + "\u0301" * 50
    )
    shown = text("issues", action="opened", issue={**ISSUE, "title": hostile})
    assert shown.startswith("🟢 Bob opened issue #3 <b>x</b> [y](https://evil) gnp.exe z q e")
    assert shown.count("\u0301") == 4
    assert not set(shown) & set("\u202e\u2066\u200b\u200d\u2060\ufeff\U000e0041")


def test_a_body_of_70_kb_is_cut() -> None:
    shown = text("issue_comment", action="created", issue=ISSUE, comment={"body": "word " * 14_000})
    assert len(shown) < 400
    assert shown.endswith("…")


def test_all_that_can_be_long_is_cut() -> None:
    long = "x" * 70_000
    repo = {"full_name": long, "owner": {"login": long}}
    pull = {**PULL, "title": long, "body": long, "user": {"login": long}}
    for event, payload in (
        ("pull_request", {"action": "opened", "pull_request": pull}),
        ("push", {"ref": f"refs/heads/{long}", "commits": [{"id": long, "message": long}] * 9}),
        ("workflow_run", {"action": "completed", "workflow_run": {**RUN, "name": long, "display_title": long}}),
        ("release", {"action": "published", "release": {"tag_name": long, "name": long, "body": long}}),
    ):
        assert len(text(event, repository=repo, sender={"login": long}, **payload)) < 1500


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1", b"\xff\xfe\x00", b'{"a": NaN}', b"[" * 100_000,
                                  b"1" * 10_000, b"[]", b"null", b"7",
                                  b'{"repository": 5}', b'{"action": []}'])  # fmt: skip
def test_what_cant_be_understood_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        notice("issues", body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda of: st.lists(of) | st.dictionaries(st.text(), of)
)
FIELDS = st.sampled_from([
    "action", "repository", "sender", "issue", "pull_request", "comment", "review", "release", "workflow_run", "ref",
    "commits", "title", "number", "body", "user", "login", "full_name", "state", "tag_name", "conclusion",
])  # fmt: skip


@given(event=st.sampled_from(sorted(TABLE)), payload=st.dictionaries(FIELDS, st.dictionaries(FIELDS, JSON) | JSON))
def test_no_payload_makes_anything_but_a_notice_a_reason_or_a_bad_payload(event: str, payload: dict[str, Any]) -> None:
    try:
        found = notice(event, json.dumps(payload).encode())
    except BadPayload:
        return
    assert isinstance(found, Notice | Ignored)


# ---- text ----


@given(st.text(), st.integers(5, 300))
def test_text_is_cut_to_what_it_may_take(given_text: str, most: int) -> None:
    for shorten in (line, excerpt, cut):
        assert len(shorten(given_text, most)) <= most
    assert "\n" not in line(given_text, most)
    assert clean(clean(given_text)) == clean(given_text)


def test_right_to_left_words_stay_readable() -> None:
    assert line("שלום \u200fعالم", 50) == "שלום عالم"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"message": "hello"}', "hello"),
        (b'{"message": "a\\r\\nb\\u202e"}', "a\nb"),
        (b'{"message": 5}', '{\n  "message": 5\n}'),
        (b'{"message": "  "}', '{\n  "message": "  "\n}'),
        ('["ü"]'.encode(), '[\n  "ü"\n]'),
        (b"7", "7"),
    ],
)
def test_a_generic_message_is_its_message_or_readable_json(body: bytes, expected: str) -> None:
    assert generic_text(body) == expected


def test_a_generic_message_fits_into_one_of_telegrams() -> None:
    for body in ({"message": "😀" * 5000}, {"x": "é" * 9000}):
        found = generic_text(json.dumps(body).encode())
        assert len(found.encode("utf-16-le")) // 2 <= 4096
        assert found.endswith("…")


def test_a_message_that_would_be_gigabytes_when_it_is_readable_is_cut_in_time() -> None:
    deep = "[" * 900 + ",".join("1" * 200_000) + "]" * 900
    assert generic_text(deep.encode()).endswith("…")


# ---- who hears of it ----

ADMIN = User(1, "root", "admin", github="Root-Hub")
ALICE = User(2, "alice", github="Alice", github_repos=("Acme/Site",), github_repos_allowed=("acme/*", "x/y"))
BOB = User(3, "bob")
CONFIG = Config(Kai(), (ADMIN, ALICE, BOB))


def told(logins: set[str], repository: str = "other/thing", **own: frozenset[str]) -> list[str]:
    return recipients(Notice([], frozenset(logins), repository), CONFIG, own)


def test_it_goes_to_those_it_concerns_to_subscribers_and_else_to_admins() -> None:
    assert told({"alice", "nobody"}) == ["alice"]
    assert told(set(), "acme/site") == ["alice"]
    assert told(set(), "x/y", bob=frozenset({"x/y"})) == ["bob"]
    assert told({"alice"}, "x/y", bob=frozenset({"x/y"})) == ["alice", "bob"]
    assert told({"stranger"}) == ["root"]
    assert told({"root-hub"}) == ["root"]
    assert told(set(), "") == ["root"]


def test_a_user_may_add_what_the_admin_named_and_an_admin_anything() -> None:
    assert (
        may_add(ALICE, "ACME/new") and may_add(ALICE, "x/Y") and not may_add(ALICE, "x/z") and not may_add(BOB, "a/b")
    )
    assert may_add(ADMIN, "any/thing")
    assert allowed(ALICE, frozenset({"acme/a", "gone/b"})) == {"acme/a"}
