"""What went wrong with Claude Code, in sentences for the user: what happened, and what to do."""

from __future__ import annotations

from kai.agent.backend import AgentDied, Context, SessionUnknown
from kai.agent.process import MAX_LINE
from kai.agent.stream import Message, errors, text

NO_SESSION = ("No conversation found with session ID", "--resume requires a valid session ID")
TOO_LONG = f"The agent's answer had a line of more than {MAX_LINE >> 20} MiB."


def failure(result: Message, context: Context) -> str:
    """A failed turn in a sentence for the user."""
    told = errors(result)
    login = f"the operator can run `sudo kai login {context.user}`"
    if result.get("api_error_status") == 401:
        if context.model_door:
            login += ", or put a good key into /etc/credstore/kai-model-key and restart kai-proxy"
        return f"The model refused the key (401): {told}; {login}."
    if told.startswith("Not logged in"):
        return f"The agent is not logged in to a model: {login}."
    return told or f"The agent failed in the middle of the turn ({text(result, 'subtype') or 'no reason given'})."


def why_it_died(status: str, tail: list[str], context: Context) -> AgentDied:
    """The end of an agent that never took a turn."""
    if context.session and any(mark in line for line in tail for mark in NO_SESSION):
        return SessionUnknown(f"The agent no longer knows the session {context.session}.")
    for line in tail:
        if line.startswith("kai-inner: "):
            return AgentDied(f"The agent can't be started: {line.removeprefix('kai-inner: ')}.")
        if line.startswith("sudo: "):
            return AgentDied(
                f"The account of {context.user} doesn't open: {line}; the operator can run `sudo kai users apply`."
            )
        if "unknown option" in line:
            return AgentDied(f"This version of {context.command[0]} doesn't fit to Kai; update it: {line}.")
    how = f" ({status})" if status else ""
    return AgentDied("\n".join((f"The agent ended while it started{how}.", *tail)))
