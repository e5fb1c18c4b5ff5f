"""Which address may become a link in Telegram, and how the others are shown.

Telegram refuses a whole message for one `text_link` that it doesn't like (400, "entity URL … is invalid"), and
makes nonsense of mailto: and tel: ("http://mailto:…"). The pattern is the part of tdlib's parse_url and
LinkManager::check_link that an honest link needs: http or https with a host that has a dot, or tg. Addresses with
a user's name in front (`https://bank.example@evil.example`) are good for deceiving only and are shown as text;
so is every tg: address but `tg://resolve`: `tg://user` is refused for people the bot doesn't know, and others (`proxy`,
`login`) change settings of whoever presses harmless words.
"""

from __future__ import annotations

import re
from typing import Final

MAX_URL: Final = 2000  # characters; longer ones are no addresses to click on

_CLICKABLE: Final = re.compile(
    r"https?://(?:[\w-]+\.)+[\w-]+(?::0*([1-9]\d{0,4}))?(?:[/?#]\S*)?|tg://resolve\?\S+",
    re.IGNORECASE,
)
_SPELLED_OUT: Final = re.compile(r"(?:mailto|tel):", re.IGNORECASE)


def clickable(url: str) -> bool:
    """Whether Telegram takes `url` as the target of a link."""
    match = _CLICKABLE.fullmatch(url) if len(url) <= MAX_URL else None
    return match is not None and int(match[1] or 1) <= 65535


def readable(url: str) -> str:
    """`url` as text for people, empty where it would tell them nothing. Telegram finds mail and telephone itself."""
    if url.startswith("#") or url[:5].lower() == "data:":
        return ""
    return _SPELLED_OUT.sub("", url, count=1)
