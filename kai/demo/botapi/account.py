"""API methods about the bot itself and its chats: getMe, webhooks, commands, getChat."""

from __future__ import annotations

import json
import re
from typing import Any

from kai.demo.botapi.answers import JsonDict, bad, conflict
from kai.demo.botapi.params import Params
from kai.demo.botapi.world import World

_COMMAND = re.compile(r"[a-z0-9_]{1,32}")
_HTTPS = re.compile(r"https://[^/?#\s@:\[\]]+(:\d{1,5})?([/?#]|$)", re.IGNORECASE)
_SECRET = re.compile(r"[A-Za-z0-9_-]{0,256}")
_MAX_COMMANDS = 100
_MAX_DESCRIPTION = 256  # characters
_SCOPES = {
    "default": (),
    "all_private_chats": (),
    "all_group_chats": (),
    "all_chat_administrators": (),
    "chat": ("chat_id",),
    "chat_administrators": ("chat_id",),
    "chat_member": ("chat_id", "user_id"),
}


def get_me(world: World, _params: Params) -> JsonDict:
    """getMe."""
    return {
        **world.bot,
        "can_join_groups": True,
        "can_read_all_group_messages": False,
        "supports_inline_queries": False,
        "supports_guest_queries": False,
        "can_connect_to_business": False,
        "has_main_web_app": False,
        "has_topics_enabled": False,
        "allows_users_to_create_topics": False,
        "can_manage_bots": False,
    }


def get_chat(world: World, params: Params) -> JsonDict:
    """getChat: the full form, with what python-telegram-bot requires."""
    chat = world.chat(params.text("chat_id"))
    return {
        **chat.wire,
        "accent_color_id": 0,
        "max_reaction_count": 11,
        "accepted_gift_types": {
            "unlimited_gifts": True,
            "limited_gifts": True,
            "unique_gifts": True,
            "premium_subscription": True,
            "gifts_from_channels": True,
        },
    }


def set_webhook(world: World, params: Params) -> bool:
    """setWebhook: updates are posted there from now on; a waiting getUpdates ends with 409."""
    url = params.text("url")
    if not url:
        return delete_webhook(world, params)
    if not _HTTPS.match(url):
        raise bad("bad webhook: An HTTPS URL must be provided for webhook")
    secret = params.text("secret_token")
    if not _SECRET.fullmatch(secret):
        raise bad("secret token contains unallowed characters" if len(secret) <= 256 else "secret token is too long")
    world.updates.allow(params.structure("allowed_updates", what="allowed_updates"))
    if params.boolean("drop_pending_updates"):
        world.updates.clear()
    world.webhook = {
        "url": url,
        "secret_token": secret,
        "has_custom_certificate": "certificate" in params.files,
        "max_connections": min(100, max(1, params.integer("max_connections", 40))),
    }
    world.updates.end_poll(conflict("terminated by setWebhook request"))
    world.journal.wake()
    return True


def delete_webhook(world: World, params: Params) -> bool:
    """deleteWebhook."""
    if params.boolean("drop_pending_updates"):
        world.updates.clear()
    world.webhook = {}
    return True


def get_webhook_info(world: World, _params: Params) -> JsonDict:
    """getWebhookInfo."""
    info: JsonDict = {
        "url": "",
        "has_custom_certificate": False,
        **{name: value for name, value in world.webhook.items() if name != "secret_token"},
        "pending_update_count": len(world.updates),
    }
    if world.updates.allowed:
        info["allowed_updates"] = world.updates.allowed
    return info


def set_my_commands(world: World, params: Params) -> bool:
    """setMyCommands, per scope and language."""
    commands = params.structure("commands", what="commands")
    if not isinstance(commands, list):
        raise bad("expected an Array of BotCommand")
    kept = [_command(command) for command in commands]
    if len(kept) > _MAX_COMMANDS:
        raise bad("BOT_COMMANDS_TOO_MUCH")
    key = _command_key(params)
    world.commands[key] = kept
    world.journal.note("commands", data={"scope": key[0], "language_code": key[1], "commands": kept})
    return True


def get_my_commands(world: World, params: Params) -> list[JsonDict]:
    """getMyCommands: exactly what was set for this scope and language."""
    return world.commands.get(_command_key(params), [])


def delete_my_commands(world: World, params: Params) -> bool:
    """deleteMyCommands."""
    key = _command_key(params)
    world.commands.pop(key, None)
    world.journal.note("commands", data={"scope": key[0], "language_code": key[1], "commands": []})
    return True


def _command(command: Any) -> JsonDict:
    if not isinstance(command, dict):
        raise bad("can't parse BotCommand: expected an Object")
    name, description = command.get("command"), command.get("description")
    if not isinstance(name, str) or not isinstance(description, str):
        raise bad("can't parse BotCommand: command and description must be of type String")
    name, description = name.strip().removeprefix("/"), description.strip()
    if not name:
        raise bad("command must be non-empty")
    if not _COMMAND.fullmatch(name):
        raise bad("BOT_COMMAND_INVALID")
    if not description:
        raise bad("command description must be non-empty")
    if len(description) > _MAX_DESCRIPTION:
        raise bad(f"command description length must not exceed {_MAX_DESCRIPTION}")
    return {"command": name, "description": description}


def _command_key(params: Params) -> tuple[str, str]:
    scope = params.structure("scope", what="BotCommandScope")
    if scope is None:
        scope = {"type": "default"}
    kind = str(scope.get("type")) if isinstance(scope, dict) else ""
    if kind not in _SCOPES:
        raise bad("can't parse BotCommandScope: Unsupported type specified")
    wanted = {name: str(scope.get(name, "")) for name in _SCOPES[kind]}
    if not all(wanted.values()):
        raise bad("can't parse BotCommandScope: Empty chat_id specified")
    language = params.text("language_code")
    if not re.fullmatch(r"([a-z]{2})?", language):
        raise bad("invalid language code specified")
    return json.dumps({"type": kind, **wanted}, sort_keys=True), language
