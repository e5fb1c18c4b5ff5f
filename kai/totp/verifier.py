"""kai.Totp: what may be asked of the verifier. Whatever can't be told is Doubtful, which lets nobody pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from kai.config import Totp
from kai.config.rules import USER_NAME
from kai.interfaces import Doubtful, ListTotp, TotpState, TotpStates, Unlock, Verdict, Verify
from kai.lib import codes, enrolment, log
from kai.lib.peers import Peer
from kai.lib.server import Handlers
from kai.lib.store import StoreError
from kai.lib.varlink import Empty, InvalidParameter
from kai.totp.record import Enrolment, Record
from kai.totp.secrets import STORES, Secret

logger = logging.getLogger(__name__)


class Verifier:
    """Answers on totp.sock. `directory` holds the markers, `secrets` are those of this start."""

    def __init__(
        self, limits: Callable[[], Totp], directory: Path, secrets: Mapping[str, Secret], record: Record
    ) -> None:
        self.limits, self.directory, self.secrets, self.record = limits, directory, secrets, record
        self._told: set[str] = set()

    def handlers(self) -> Handlers:
        return {Verify: self.verify, ListTotp: self.listed, Unlock: self.unlock}

    async def verify(self, peer: Peer, call: Verify) -> Verdict:
        user = _name(call.user)
        if call.code and not codes.CODE.fullmatch(call.code):
            raise InvalidParameter("code: expected six digits")  # never the code itself
        with log.fields(KAI_USER=user):
            try:
                found = self._enrolment(user)
                if found is None:
                    return Verdict("off")
                if not call.code:
                    return await self.record.standing(found, self.limits())
                verdict, looked = await self.record.tries(found, call.code, self.limits())
            except (Doubtful, StoreError) as error:
                raise self._doubt(user, error) from None
            if looked:
                _tell(user, verdict)
            return verdict

    async def unlock(self, peer: Peer, call: Unlock) -> Empty:
        user = _name(call.user)
        with log.fields(KAI_USER=user):
            try:
                found = self._enrolment(user)
                if found is None:
                    raise Doubtful(f"{user} isn't enrolled: `sudo kai totp setup {user}`")
                await self.record.unlock(found)
            except (Doubtful, StoreError) as error:
                raise self._doubt(user, error) from None
            logger.info("%s was unlocked by %s", user, peer)
        return Empty()

    async def listed(self, peer: Peer, call: ListTotp) -> TotpStates:
        try:
            users = sorted(name for name in os.listdir(self.directory) if USER_NAME.fullmatch(name))  # noqa: PTH208
            states = await self.record.states()
        except OSError as error:
            raise Doubtful(_lost(self.directory, error)) from None
        except StoreError as error:
            raise Doubtful(str(error)) from None
        shown = []
        for user in users:
            trouble = ""
            try:
                if found := self._enrolment(user):
                    await self.record.state(found)
            except (Doubtful, StoreError) as error:
                trouble = str(error)
            state = states.get(user)
            counted = (state.failures, state.locked_until, state.accepted) if state else (0, 0.0, 0.0)
            shown.append(TotpState(user, *counted, trouble=trouble))
        return TotpStates(shown)

    def _enrolment(self, user: str) -> Enrolment | None:
        """None for one who isn't enrolled. Raises Doubtful."""
        path, again = self.directory / user, f"`sudo kai totp setup {user} --replace`"
        try:
            if not enrolment.enrolled(self.directory, user):
                return None
            marker = enrolment.read(self.directory, user)
        except OSError as error:
            raise Doubtful(_lost(path, error)) from None
        except ValueError as error:
            raise Doubtful(f"{path}: {error}: {again}") from None
        secret = self.secrets.get(user)
        if secret is None:
            raise Doubtful(
                f"the secret of {user} is missing: put {STORES['totp']}/{user} back and run "
                f"`sudo kai totp unlock {user}`, or {again}"
            )
        if secret.trouble:
            raise Doubtful(secret.trouble)
        print_ = codes.fingerprint(secret.text)
        if marker.secret and marker.secret != print_:
            raise Doubtful(f"the secret of {user} isn't the one that {path} was made for: {again}")
        return Enrolment(user, print_, marker.step, secret.text)

    def _doubt(self, user: str, error: Exception) -> Doubtful:
        """The same trouble is in the journal once, however often a stranger makes the bot ask."""
        text = str(error)
        if text not in self._told:
            self._told.add(text)
            logger.error("nothing is let through for %s: %s", user, text)
        return Doubtful(text)


def _name(user: str) -> str:
    if not USER_NAME.fullmatch(user):
        raise InvalidParameter("user: expected a user's name")
    return user


def _lost(path: Path, error: OSError) -> str:
    return f"{path}: {error.strerror}: `sudo systemd-tmpfiles --create kai.conf` puts directories and modes right"


def _tell(user: str, verdict: Verdict) -> None:
    if verdict.state == "ok":
        logger.info("a code of %s was accepted", user)
    elif verdict.state == "bad":
        logger.warning("a wrong code for %s, %d more and the gate is locked", user, verdict.remaining)
    else:
        logger.warning("the gate of %s is locked for codes until %.0f", user, verdict.until)
