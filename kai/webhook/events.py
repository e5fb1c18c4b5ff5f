"""What is read of GitHub's payloads; everything else in them is left alone. Source: GitHub's webhook documentation.

A deleted account is null where a user is expected, an empty body too. Fields that decide something are required, so
that a payload which isn't what it says is found out.
"""

from __future__ import annotations

import msgspec


class Account(msgspec.Struct):
    login: str = ""


class Repository(msgspec.Struct):
    full_name: str
    html_url: str = ""
    owner: Account | None = None
    default_branch: str = ""


class Team(msgspec.Struct):
    name: str = ""


class Issue(msgspec.Struct):
    """An issue, or the pull request that a comment is on: then `pull_request` is there."""

    number: int
    title: str
    html_url: str = ""
    user: Account | None = None
    assignees: list[Account | None] = []
    body: str | None = None
    state_reason: str | None = None
    pull_request: dict[str, object] | None = None


class PullRequest(msgspec.Struct):
    number: int
    title: str
    html_url: str = ""
    user: Account | None = None
    assignees: list[Account | None] = []
    requested_reviewers: list[Account | None] = []
    body: str | None = None
    merged: bool | None = None
    draft: bool | None = None


class Comment(msgspec.Struct):
    html_url: str = ""
    body: str | None = None
    user: Account | None = None


class Review(msgspec.Struct):
    state: str
    html_url: str = ""
    body: str | None = None
    user: Account | None = None


class Release(msgspec.Struct):
    tag_name: str
    html_url: str = ""
    name: str | None = None
    body: str | None = None
    prerelease: bool = False
    author: Account | None = None


class Run(msgspec.Struct):
    html_url: str = ""
    name: str | None = None
    run_number: int = 0
    conclusion: str | None = None
    head_branch: str | None = None
    display_title: str = ""
    actor: Account | None = None


class Person(msgspec.Struct):
    """Who wrote a commit, as git knows him; `username` where GitHub knows him too."""

    name: str = ""
    username: str | None = None


class Commit(msgspec.Struct):
    id: str
    message: str = ""
    url: str = ""
    author: Person | None = None


class Event(msgspec.Struct):
    """What all have. An app's or an organisation's event may have no repository."""

    action: str = ""
    repository: Repository | None = None
    organization: Account | None = None
    sender: Account | None = None


class InRepository(Event, kw_only=True):
    repository: Repository


class Ping(Event):
    zen: str = ""


class Push(InRepository, kw_only=True):
    ref: str
    created: bool = False
    deleted: bool = False
    forced: bool = False
    compare: str = ""
    commits: list[Commit] = []


class PullRequestEvent(InRepository, kw_only=True):
    pull_request: PullRequest
    assignee: Account | None = None
    requested_reviewer: Account | None = None
    requested_team: Team | None = None


class IssueEvent(InRepository, kw_only=True):
    issue: Issue
    assignee: Account | None = None


class CommentEvent(InRepository, kw_only=True):
    issue: Issue
    comment: Comment


class ReviewEvent(InRepository, kw_only=True):
    pull_request: PullRequest
    review: Review


class ReleaseEvent(InRepository, kw_only=True):
    release: Release


class RunEvent(InRepository, kw_only=True):
    workflow_run: Run
