"""kai-agent@USER(8): supervises the agent program of one user.

Runs as kai-u-USER, started by the first connection to its socket; leaves when it is idle. Drives the inner agent over
pipes through sudo and kai-inner, so the agent has the work account's uid and never this one's. Keeps the journal of
turns, the session and the history. Holds no secret; only kai-bot and kai-scheduler may ask for turns.
"""

from __future__ import annotations

import logging
from pathlib import Path

from kai.agent.backend import AgentBackend, AgentDied
from kai.agent.door import command as door_command
from kai.agent.supervisor import Settings, Supervisor
from kai.agent.turns import Turns
from kai.config import Config, ConfigError, User, expand, home_of, load
from kai.interfaces import Hello, Join, NewSession, Retire, Start, State, Stop
from kai.lib import daemon, log
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Handlers, Server, misconfigured
from kai.lib.store import StoreError
from kai.lib.varlink import Misconfigured

IDLE = 5.0
"""Seconds without turn, process or connection until the supervisor leaves (trigger limits: facts §5)."""
METHODS = (Hello, Start, Join, Stop, NewSession, State, Retire)
logger = logging.getLogger(__name__)


def main() -> None:
    daemon.run("kai-agent", serve, instance=True)


async def serve(d: Daemon) -> None:
    peers = Peers(one_uid=d.one_uid)
    with log.fields(KAI_USER=d.instance):
        try:
            supervisor = await _supervisor(d)
        except (ConfigError, Misconfigured, StoreError) as error:
            await misconfigured(d, "front", peers, METHODS, str(error))
            return
        handlers: Handlers = {
            Hello: supervisor.hello,
            Start: supervisor.start,
            Join: supervisor.join,
            Stop: supervisor.stop,
            NewSession: supervisor.new_session,
            State: supervisor.describe,
            Retire: supervisor.retire,
        }
        Server(d, "front", peers, handlers)
        d.ready("idle")
        await d.until_done(idle_after=IDLE)
        await supervisor.drain()


async def _supervisor(d: Daemon) -> Supervisor:
    config = Reread(d)
    base = d.state_dir.parent
    if d.one_uid:
        for name in ("history", "files", "memory", "work", "tmp"):
            (base / name).mkdir(exist_ok=True)  # in an installation tmpfiles.d makes them, each with its owner
    turns = Turns(d.state_dir)
    supervisor = Supervisor(d, base, turns, lambda: settings(d, *config.current(), base), make_backend)
    await supervisor.open()
    return supervisor


class Reread:
    """The configuration; on SIGHUP read again, and a broken one leaves the last good one in force."""

    def __init__(self, d: Daemon) -> None:
        self.d = d
        self.config = load(d.config_dir)
        self.current()
        d.on_reload.append(self.reload)

    def reload(self) -> None:
        self.config = load(self.d.config_dir)

    def current(self) -> tuple[Config, User]:
        user = self.config.user(self.d.instance)
        if user is None:
            raise Misconfigured(
                f"{self.d.config_dir}/users.yaml: no user named {self.d.instance}: run `kai users apply`"
            )
        return self.config, user


def settings(d: Daemon, config: Config, user: User, base: Path) -> Settings:
    return Settings(
        user=user.name,
        backend=str(config.effective(user, "backend")[0]),
        command=config.command(user),
        model=str(config.effective(user, "model")[0] or ""),
        door=door_command(user, one_uid=d.one_uid),
        home=expand(user.home_workspace, home_of(user) or base) if user.home_workspace else base / "work",
        model_door=config.kai.agent.model_door != "off",
        idle_timeout=config.kai.agent.idle_timeout,
        drain=config.kai.drain,
    )


def make_backend(name: str) -> AgentBackend:
    if name != "claude":
        raise AgentDied(f"The backend {name} is not available in this version; the operator can set `backend: claude`.")
    from kai.agent.claude import ClaudeBackend

    return ClaudeBackend()


if __name__ == "__main__":
    main()
