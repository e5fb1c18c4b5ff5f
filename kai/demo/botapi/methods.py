"""The table of API methods. getUpdates isn't in it: it waits, and lives in updates.py."""

from __future__ import annotations

from collections.abc import Callable

from kai.demo.botapi import account, media, messages
from kai.demo.botapi.params import Params
from kai.demo.botapi.world import World

Method = Callable[[World, Params], object]

GET_UPDATES = "getupdates"

METHODS: dict[str, Method] = {  # names in lower case: Telegram doesn't mind the case
    "getme": account.get_me,
    "getchat": account.get_chat,
    "setwebhook": account.set_webhook,
    "deletewebhook": account.delete_webhook,
    "getwebhookinfo": account.get_webhook_info,
    "setmycommands": account.set_my_commands,
    "getmycommands": account.get_my_commands,
    "deletemycommands": account.delete_my_commands,
    "sendmessage": messages.send_message,
    "sendmessagedraft": messages.send_message_draft,
    "sendchataction": messages.send_chat_action,
    "editmessagetext": messages.edit_message_text,
    "editmessagereplymarkup": messages.edit_message_reply_markup,
    "deletemessage": messages.delete_message,
    "answercallbackquery": messages.answer_callback_query,
    "setmessagereaction": messages.set_message_reaction,
    "senddocument": media.send_document,
    "sendphoto": media.send_photo,
    "sendvoice": media.send_voice,
    "getfile": media.get_file,
}
