"""The emoji that a reaction may be (https://core.telegram.org/bots/api#reactiontypeemoji)."""

from __future__ import annotations

_EMOJI = (
    "❤ 👍 👎 🔥 🥰 👏 😁 🤔 🤯 😱 🤬 😢 🎉 🤩 🤮 💩 🙏 👌 🕊 🤡 🥱 🥴 😍 🐳 ❤‍🔥 "
    "🌚 🌭 💯 🤣 ⚡ 🍌 🏆 💔 🤨 😐 🍓 🍾 💋 🖕 😈 😴 😭 🤓 👻 👨‍💻 👀 🎃 🙈 😇 😨 "
    "🤝 ✍ 🤗 🫡 🎅 🎄 ☃ 💅 🤪 🗿 🆒 💘 🙉 🦄 😘 💊 🙊 😎 👾 🤷‍♂ 🤷 🤷‍♀ 😡"
)
_SELECTOR = "\ufe0f"  # "show as picture": Telegram takes an emoji with and without it

ALLOWED = frozenset(_EMOJI.split())


def is_allowed(emoji: str) -> bool:
    """Whether a bot may react with it."""
    return emoji.replace(_SELECTOR, "") in ALLOWED
