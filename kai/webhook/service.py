"""kai.Webhook: what the bot, kai-github and the operator may ask of the intake."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import msgspec

from kai.config import Config, User
from kai.interfaces import (
    IntakeState,
    ListRepositories,
    ListSubscriptions,
    ReadIntake,
    Repositories,
    RetryDeliveries,
    Subscribe,
    Subscriptions,
)
from kai.lib.peers import Peer
from kai.lib.server import Handlers
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, InvalidParameter
from kai.webhook.delivery import Delivery
from kai.webhook.intake import Intake
from kai.webhook.records import MOST_REPOSITORIES, Records, TooMany
from kai.webhook.routing import allowed, may_add
from kai.webhook.secrets import Secrets
from kai.webhook.spool import Spool, explain, id_of, received_at

REPOSITORY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
MOST_SHOWN = 20
GITHUB_PATH = "/webhook/github"
logger = logging.getLogger(__name__)


class Service:
    """Answers on intake.sock."""

    def __init__(
        self,
        config: Callable[[], Config],
        secrets: Secrets,
        spool: Spool,
        records: Records,
        intake: Intake,
        delivery: Delivery,
    ) -> None:
        self.config, self.secrets = config, secrets
        self.spool, self.records, self.intake, self.delivery = spool, records, intake, delivery

    def handlers(self) -> Handlers:
        return {
            ListSubscriptions: self.subscriptions,
            Subscribe: self.subscribe,
            ListRepositories: self.repositories,
            ReadIntake: self.state,
            RetryDeliveries: self.retry,
        }

    @property
    def endpoint(self) -> str:
        """Where GitHub is to post, "" when the public address isn't configured."""
        url = self.config().kai.webhook.url
        return f"{url}{GITHUB_PATH}" if url else ""

    async def subscriptions(self, peer: Peer, call: ListSubscriptions) -> Subscriptions:
        return self._of(self._user(call.user))

    async def subscribe(self, peer: Peer, call: Subscribe) -> Subscriptions:
        user = self._user(call.user)
        if call.chat and call.chat not in user.notify_chats:
            raise InvalidParameter(f"chat: {call.chat} is not one of {user.name}'s notify_chats")
        if call.add:
            self._check_new(user, call.add)
        try:
            await self.records.choose(
                user.telegram_id,
                add=call.add.lower(),
                remove=call.remove.lower(),
                chat=call.chat,
                reviews=call.reviews,
                triage=call.triage,
            )
        except TooMany:
            raise InvalidParameter(f"add: {MOST_REPOSITORIES} repositories are the most; remove one first") from None
        except StoreError as error:
            raise Busy(str(error)) from None
        logger.info("%s's subscriptions: %s", user.name, msgspec.json.encode(call).decode())
        return self._of(user)

    def _check_new(self, user: User, name: str) -> None:
        if not REPOSITORY.fullmatch(name) or name.rpartition("/")[2] in (".", ".."):
            raise InvalidParameter("add: expected a repository as OWNER/REPO")
        if not may_add(user, name):
            allowed = ", ".join(user.github_repos_allowed) or "none"
            raise InvalidParameter(f"add: {name} is not among the repositories that {user.name} may add ({allowed})")

    async def repositories(self, peer: Peer, call: ListRepositories) -> Repositories:
        names = {name.lower() for user in self.config().users for name in user.github_repos}
        for user in self.config().users:
            names |= self._own(user)
        return Repositories(names=sorted(names))

    async def state(self, peer: Peer, call: ReadIntake) -> IntakeState:
        try:
            last = await self.records.last()
        except StoreError as error:
            raise Busy(str(error)) from None
        newest = self.intake.last
        event, at = (newest.event, newest.received) if newest else (last.event, last.received)
        oldest = next(iter(self.spool.names), "")
        try:
            failed = self.spool.given_up()
        except OSError as error:
            raise Busy(f"{self.spool.failed}: {error.strerror}") from None
        return IntakeState(
            endpoint=self.endpoint,
            github=bool(self.secrets.github),
            rotating=self.secrets.rotating,
            generic=bool(self.secrets.generic),
            last=event,
            last_at=at,
            stored=len(self.spool.names),
            oldest_at=received_at(oldest) if oldest else 0.0,
            failed=len(failed),
            given_up=[id_of(name) for name in failed[: -MOST_SHOWN - 1 : -1]],
            trouble="; ".join(filter(None, (self.secrets.trouble, self.intake.trouble, self.delivery.trouble))),
        )

    async def retry(self, peer: Peer, call: RetryDeliveries) -> IntakeState:
        try:
            count = self.intake.retry()
        except OSError as error:
            raise Busy(f"{self.spool.failed}: {explain(error)}") from None
        logger.info("%d deliveries that were given up are tried again", count)
        self.delivery.wake()
        return await self.state(peer, ReadIntake())

    def _user(self, name: str) -> User:
        user = self.config().user(name)
        if user is None:
            raise InvalidParameter(f"user: nobody is named {name}")
        return user

    def _own(self, user: User) -> frozenset[str]:
        """What he added himself, as far as he may have it today."""
        return allowed(user, self.records.of(user.telegram_id).repositories)

    def _of(self, user: User) -> Subscriptions:
        choices, config = self.records.of(user.telegram_id), self.config()
        reviews, triage = choices.reviews, choices.triage
        return Subscriptions(
            fixed=list(user.github_repos),
            repositories=sorted(self._own(user)),
            allowed=["*/*"] if user.admin else list(user.github_repos_allowed),
            chat=choices.chat if choices.chat in user.notify_chats else 0,
            chats=list(user.notify_chats),
            reviews=config.effective(user, "pr_review")[0] if reviews is None else reviews,
            triage=config.effective(user, "issue_triage")[0] if triage is None else triage,
            endpoint=self.endpoint,
        )
