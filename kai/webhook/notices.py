"""From a payload of GitHub's to the notice that people read: short, linked, and text whatever stands in the payload.

`TABLE` lists the events and the actions that give one; everything else is ignored on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from kai.interfaces import Span
from kai.webhook import events
from kai.webhook.events import Account, Event
from kai.webhook.text import BadPayload, excerpt, line, parse

TITLE, NAME, EXCERPT = 150, 60, 300
"""Characters that are shown of a title, of a name and of what somebody wrote."""
MOST_COMMITS = 5
FAILURES = {"failure": "failed", "timed_out": "timed out", "startup_failure": "could not start"}
_DONE = {
    "reopened": "reopened PR",
    "ready_for_review": "marked as ready PR",
    "converted_to_draft": "made a draft of PR",
}
_REVIEWED = "💬", "reviewed"
_VERDICTS = {"approved": ("✅", "approved"), "changes_requested": ("❌", "requested changes on")}
Spans = list[Span]


class Notice(msgspec.Struct):
    """`logins` are the people whom the event concerns, `repository` is OWNER/NAME or ""; both in small letters."""

    spans: Spans
    logins: frozenset[str]
    repository: str


class Ignored(msgspec.Struct):
    """Nobody hears of it, and why."""

    reason: str


def notice(event: str, body: bytes) -> Notice | Ignored:
    """Raises BadPayload."""
    if event not in TABLE:
        return Ignored(f"no notices of {event} events")
    kind, actions, work = TABLE[event]
    try:
        payload = msgspec.convert(parse(body), kind)
    except msgspec.ValidationError as error:
        raise BadPayload(f"a {event} event of GitHub's is not as expected: {error}") from None
    if actions and payload.action not in actions:
        return Ignored(f"no notices of {event} events with action {line(payload.action, 40) or 'none'}")
    made, concerned = work(payload)
    if not made:
        return Ignored(f"a {event} event that needs no notice")
    owner = payload.repository.owner if payload.repository else payload.organization
    logins = {one.login.lower() for one in (payload.sender, owner, *concerned) if one and one.login}
    return Notice(made, frozenset(logins), payload.repository.full_name.lower() if payload.repository else "")


# ---- pieces ----


def who(account: Account | None) -> Span:
    return Span(line(account.login, NAME) if account and account.login else "somebody", bold=True)


def link(text: str, url: str) -> Span:
    """A link where it leads to the web by TLS, else its text alone."""
    good = url.startswith("https://") and len(url) <= 1000 and url.isprintable() and " " not in url
    return Span(text, url=url if good else "")


def title(number: int, text: str, url: str) -> Span:
    return link(f"#{number} {line(text, TITLE) or '(no title)'}", url)


def where(payload: Event) -> Span:
    return Span(f" ({line(payload.repository.full_name, 140)})" if payload.repository else "")


def quoted(text: str | None) -> Spans:
    shown = excerpt(text or "", EXCERPT)
    return [Span(f"\n{shown}")] if shown else []


# ---- events ----

Made = tuple[Spans, Iterable[Account | None]]


def _ping(payload: events.Ping) -> Made:
    name = payload.repository.full_name if payload.repository else ""
    name = name or (payload.organization.login if payload.organization else "") or "GitHub"
    return [Span("🔔 The webhook of "), Span(line(name, 140), bold=True), Span(" reaches Kai.")], ()


def _push(payload: events.Push) -> Made:
    _, _, rest = payload.ref.partition("refs/")
    sort, _, name = rest.partition("/")
    what = "tag" if sort == "tags" else "branch"
    head = [Span("⬆ "), who(payload.sender)]
    shown = Span(line(name or payload.ref, NAME), code=True)
    if payload.deleted:
        return [*head, Span(f" deleted {what} "), shown, where(payload)], ()
    if not payload.commits:
        done = "created" if payload.created else "force-pushed" if payload.forced else "moved"
        return [*head, Span(f" {done} {what} "), shown, where(payload)], ()
    count = len(payload.commits)
    pushed = "force-pushed" if payload.forced else "pushed"
    text = f"{count} commit{'s' if count > 1 else ''}"
    made = [*head, Span(f" {pushed} "), link(text, payload.compare), Span(" to "), shown, where(payload)]
    for commit in payload.commits[:MOST_COMMITS]:
        first = line(commit.message.strip().partition("\n")[0], 100)
        made += [Span("\n• "), link(line(commit.id[:7], 7) or "commit", commit.url), Span(f" {first}")]
    if count > MOST_COMMITS:
        made.append(Span(f"\n… and {count - MOST_COMMITS} more"))
    writers = [Account(one.author.username) for one in payload.commits if one.author and one.author.username]
    return made, writers


def _pull_request(payload: events.PullRequestEvent) -> Made:
    pull = payload.pull_request
    end: Spans = []
    action = payload.action
    if action == "opened":
        sign, done, end = "🔀", "opened draft PR" if pull.draft else "opened PR", quoted(pull.body)
    elif action == "closed":
        sign, done = ("🟣", "merged PR") if pull.merged else ("🚫", "closed PR")
    elif action == "review_requested":
        asked = payload.requested_reviewer
        team = Span(line(payload.requested_team.name, NAME), bold=True) if payload.requested_team else who(None)
        sign, done, end = "👀", "asks for a review of PR", [Span("\nof "), who(asked) if asked else team]
    elif action == "assigned":
        sign, done, end = "👤", "assigned PR", [Span("\nto "), who(payload.assignee)]
    else:
        sign, done = "🔀", _DONE[action]
    made = [Span(f"{sign} "), who(payload.sender), Span(f" {done} "), title(pull.number, pull.title, pull.html_url),
            where(payload), *end]  # fmt: skip
    return made, (pull.user, *pull.assignees, *pull.requested_reviewers, payload.assignee, payload.requested_reviewer)


def _issue(payload: events.IssueEvent) -> Made:
    issue = payload.issue
    end: Spans = []
    sign = {"opened": "🟢", "closed": "✔", "reopened": "🟢", "assigned": "👤"}[payload.action]
    if payload.action == "opened":
        end = quoted(issue.body)
    elif payload.action == "assigned":
        end = [Span("\nto "), who(payload.assignee)]
    elif payload.action == "closed" and issue.state_reason == "not_planned":
        end = [Span("\nas not planned")]
    made = [Span(f"{sign} "), who(payload.sender), Span(f" {payload.action} issue "),
            title(issue.number, issue.title, issue.html_url), where(payload), *end]  # fmt: skip
    return made, (issue.user, *issue.assignees, payload.assignee)


def _comment(payload: events.CommentEvent) -> Made:
    issue, comment = payload.issue, payload.comment
    made = [Span("💬 "), who(payload.sender), Span(" commented on "),
            title(issue.number, issue.title, comment.html_url or issue.html_url), where(payload),
            *quoted(comment.body)]  # fmt: skip
    return made, (issue.user, *issue.assignees, comment.user)


def _review(payload: events.ReviewEvent) -> Made:
    pull, review = payload.pull_request, payload.review
    state = review.state.lower()
    sign, done = ("💬", "dismissed a review of") if payload.action == "dismissed" else _VERDICTS.get(state, _REVIEWED)
    made = [Span(f"{sign} "), who(payload.sender), Span(f" {done} "),
            title(pull.number, pull.title, review.html_url or pull.html_url), where(payload),
            *quoted(review.body)]  # fmt: skip
    return made, (pull.user, *pull.assignees, *pull.requested_reviewers, review.user)


def _release(payload: events.ReleaseEvent) -> Made:
    release = payload.release
    name = line(release.name or release.tag_name, TITLE) or line(release.tag_name, TITLE) or "a release"
    made = [Span("🚀 "), who(payload.sender), Span(" published "), link(name, release.html_url),
            Span(" (pre-release)" if release.prerelease else ""), where(payload), *quoted(release.body)]  # fmt: skip
    return made, (release.author,)


def _run(payload: events.RunEvent) -> Made:
    run = payload.workflow_run
    if run.conclusion not in FAILURES:
        return [], ()
    made = [Span("🔴 "), link(f"{line(run.name or 'workflow', NAME) or 'workflow'} #{run.run_number}", run.html_url),
            Span(f" {FAILURES[run.conclusion]}")]  # fmt: skip
    if run.head_branch:
        made += [Span(" on "), Span(line(run.head_branch, NAME) or "?", code=True)]
    made.append(where(payload))
    if shown := line(run.display_title, TITLE):
        made.append(Span(f"\n{shown}"))
    return made, (run.actor,)


TABLE: Mapping[str, tuple[type[Any], frozenset[str], Callable[[Any], Made]]] = {
    "ping": (events.Ping, frozenset(), _ping),
    "push": (events.Push, frozenset(), _push),
    "pull_request": (
        events.PullRequestEvent,
        frozenset({
            "opened", "closed", "reopened", "ready_for_review", "converted_to_draft", "review_requested", "assigned",
        }),
        _pull_request,
    ),
    "issues": (events.IssueEvent, frozenset({"opened", "closed", "reopened", "assigned"}), _issue),
    "issue_comment": (events.CommentEvent, frozenset({"created"}), _comment),
    "pull_request_review": (events.ReviewEvent, frozenset({"submitted", "dismissed"}), _review),
    "release": (events.ReleaseEvent, frozenset({"published"}), _release),
    "workflow_run": (events.RunEvent, frozenset({"completed"}), _run),
}  # fmt: skip
"""Event → what is read of it, the actions that count (none: all), and who makes the notice."""
