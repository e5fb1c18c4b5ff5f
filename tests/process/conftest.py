"""The whole set under one uid: real daemons, real sockets, the strict Bot API stand-in, the offline agent."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kai.demo.botapi.server import BotApi
from kai.demo.botapi.views import MessageView
from kai.demo.launcher import Launcher, offline_agent

TOKEN = "1234567:test-token-that-is-long-enough-x"
ALICE, BOB, STRANGER = 1001, 1002, 6666


class Stage:
    """A stand-in for Telegram and a running set. `say` speaks as Alice, `answer` waits for what she is shown."""

    def __init__(self, api: BotApi, launcher: Launcher) -> None:
        self.api, self.launcher = api, launcher

    def say(self, text: str, user: int = ALICE) -> int:
        return self.api.say(user, text).message_id

    async def answer(self, contains: str, *, user: int = ALICE, after: int = 0, timeout: float = 15) -> MessageView:
        """The first message of the bot that has this text and no Stop button any more."""

        def look() -> MessageView | None:
            for message in self.api.messages(user):
                if message.by_bot and message.message_id > after and contains in (message.text or ""):
                    return None if message.buttons else message
            return None

        return await self.api.wait_for(look, timeout=timeout)

    async def growing(self, contains: str = "", *, user: int = ALICE, timeout: float = 15) -> MessageView:
        """A message that still grows: it has its Stop button."""

        def look() -> MessageView | None:
            for message in self.api.messages(user):
                if message.by_bot and message.buttons and contains in (message.text or ""):
                    return message
            return None

        return await self.api.wait_for(look, timeout=timeout)

    def shown(self, user: int = ALICE) -> list[str]:
        return [message.text or "" for message in self.api.messages(user) if message.by_bot]

    def status(self, unit: str = "kai-bot") -> str:
        return self.launcher.status()[unit]


Stages = Callable[..., Any]


@pytest.fixture
async def stages(tmp_path: Path) -> AsyncIterator[Stages]:
    """Makes stages with their own settings; ends them all."""
    async with AsyncExitStack() as stack:

        async def make(*, start: bool = True, runs: Path | None = None, **options: Any) -> Stage:
            api = BotApi(token=TOKEN)
            await api.start()
            stack.push_async_callback(api.stop)
            for user in (ALICE, BOB, STRANGER):
                api.declare_user(user)
            options.setdefault("users", [{"telegram_id": ALICE, "name": "alice"}, {"telegram_id": BOB, "name": "bob"}])
            options.setdefault("agent_command", offline_agent(tmp_path / "agent", runs=runs))
            launcher = Launcher(tmp_path / "set", api_base=api.url, token=TOKEN, **options)
            stack.push_async_callback(launcher.stop)
            if start:
                await launcher.start()
                await launcher.wait_ready("kai-bot")
                await api.wait_polling()
            return Stage(api, launcher)

        yield make


@pytest.fixture
async def stage(stages: Stages) -> Stage:
    made: Stage = await stages()
    return made
