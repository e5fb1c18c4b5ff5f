"""/stats and /memory: what the agent is at, and what it remembers."""

from __future__ import annotations

import time
from datetime import datetime, tzinfo

from kai.bot.invocation import Invocation
from kai.bot.markdown import render
from kai.bot.message import Body, Code, compose, parts
from kai.bot.settings import Pieces, setting, zone
from kai.bot.text import Span, assemble, spans_of
from kai.interfaces import AgentState, Memory, MemoryText, Settings, State

STATES = {
    "idle": "idle, its process is not running",
    "starting": "starting",
    "ready": "ready, waits for a message",
    "working": "working on a message",
    "draining": "finishing its turn, restarts then",
}


async def stats(asked: Invocation) -> list[Body]:
    state, settings = await asked.ask(State()), await asked.ask(Settings())
    model, where = setting(settings, "model"), setting(settings, "timezone")
    here = zone(where.value if where else "")
    waiting = sum(row.state == "queued" for row in asked.lane.waiting)
    running = time.time() - asked.lanes.since
    pieces: Pieces = [
        f"Agent: {STATES.get(state.state, state.state)}{f'; {waiting} waiting' if waiting else ''}"
        f"{f'; jobs running: {state.jobs}' if state.jobs else ''}\n",
        "Workspace: ", Code(state.workspace or settings.workspace), "\n",
        f"Backend: {state.backend}, model: {state.model or 'its default'}{f' ({model.source})' if model else ''}\n",
        "Session: ", *session(state, here), "\n",
        f"Turns: {state.turns}\n",
        f"Cost: {cost(state)}\n",
        f"Up: agent {duration(time.time() - state.up_since) if state.up_since else '-'}, bot {duration(running)}\n",
        "Unit: ", Code(f"kai-agent@{state.user}.service"),
    ]  # fmt: skip
    return compose(*pieces)


def session(state: AgentState, where: tzinfo) -> Pieces:
    if not state.session:
        return ["none yet"]
    return [Code(state.session), f", since {datetime.fromtimestamp(state.since, where):%Y-%m-%d %H:%M}"]


def cost(state: AgentState) -> str:
    """Of the session, of its budget, of the day and the month."""
    budget = f" of {money(state.budget_usd)}" if state.budget_usd else ""
    today, month = money(state.cost_today_usd), money(state.cost_month_usd)
    return f"{money(state.cost_usd)}{budget} in this session, {today} today, {month} this month"


def money(usd: float) -> str:
    """Cents, and more of them where there are few."""
    return f"${usd:.2f}" if usd == 0 or usd >= 1 else f"${usd:.4f}"


def duration(seconds: float) -> str:
    """The two largest units: `3 d 4 h`, `12 min`."""
    minutes = max(0, int(seconds)) // 60
    days, hours, left = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {left} min" if hours else f"{left} min" if left else f"{max(0, int(seconds))} s"


async def memory(asked: Invocation) -> list[Body]:
    return shown(await asked.ask(Memory()))


def shown(found: MemoryText) -> list[Body]:
    """The file as the agent's answers are shown, below its path and what is to be said of it."""
    note = f"\n{found.note}" if found.note else "" if found.text.strip() else "\nNothing is in it yet."
    if not found.text.strip():
        return compose(Code(found.path), note)
    (head,) = compose(Code(found.path), note)
    above = f"{head.text}\n\n"
    spans = [Span("code", 0, len(head.text) - len(note))]
    text = render(found.text)
    spans += [span._replace(start=span.start + len(above), end=span.end + len(above)) for span in spans_of(text)]
    return parts(assemble(above + text.text, spans), found.text, name="MEMORY.md")
