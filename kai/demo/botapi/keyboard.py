"""reply_markup: inline keyboards checked button by button, the other kinds for their form."""

from __future__ import annotations

from typing import Any

from kai.demo.botapi.answers import JsonDict, bad
from kai.demo.botapi.entities import check_url

MAX_BUTTONS = 100
MAX_CALLBACK_DATA = 64  # bytes

_ACTIONS = (
    "url", "callback_data", "web_app", "login_url", "switch_inline_query", "switch_inline_query_current_chat",
    "switch_inline_query_chosen_chat", "copy_text", "callback_game", "pay",
)  # fmt: skip
_OTHER_KINDS = ("keyboard", "remove_keyboard", "force_reply")


def inline_keyboard(markup: Any, *, only_inline: bool = False) -> JsonDict | None:
    """The markup as a message keeps it, or None where there is nothing to keep.

    A message shows its bot nothing but inline keyboards; reply keyboards are checked and forgotten, and refused where
    `only_inline` (edits).
    """
    if markup is None:
        return None
    if not isinstance(markup, dict):
        raise bad("object expected as reply markup")
    if "inline_keyboard" not in markup:
        if only_inline and any(kind in markup for kind in _OTHER_KINDS):
            raise bad("inline keyboard expected")
        _check_reply_keyboard(markup)
        return None
    rows = markup["inline_keyboard"]
    if not isinstance(rows, list) or any(not isinstance(row, list) for row in rows):
        raise bad('field "inline_keyboard" of the InlineKeyboardMarkup must be an Array of Arrays')
    kept = [[_button(button) for button in row] for row in rows if row]
    if sum(len(row) for row in kept) > MAX_BUTTONS:
        raise bad("reply markup is too long")
    return {"inline_keyboard": kept} if kept else None


def _button(button: Any) -> JsonDict:
    if not isinstance(button, dict):
        raise bad("can't parse inline keyboard button: InlineKeyboardButton must be an Object")
    text = button.get("text")
    if not isinstance(text, str):
        raise bad('can\'t parse inline keyboard button: Field "text" must be of type String')
    if not text.strip():
        raise bad("inline keyboard button text must be non-empty")
    actions = [name for name in _ACTIONS if button.get(name) not in (None, "")]
    if not actions:
        raise bad("can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
    if len(actions) > 1:
        # Telegram takes the first and forgets the rest; whoever sends two has made a mistake
        raise bad(f"can't parse inline keyboard button: exactly one action expected, found {', '.join(actions)}")
    if actions == ["callback_data"]:
        data = button["callback_data"]
        if not isinstance(data, str) or len(data.encode("utf-8", "replace")) > MAX_CALLBACK_DATA:
            raise bad("BUTTON_DATA_INVALID")
    if actions == ["url"]:
        url = button["url"]
        fault = check_url(url) if isinstance(url, str) else "Wrong HTTP URL"
        if fault:
            raise bad(f"inline keyboard button URL '{url}' is invalid: {fault}")
    return dict(button)


def _check_reply_keyboard(markup: JsonDict) -> None:
    rows = markup.get("keyboard")
    if rows is None:
        return
    if not isinstance(rows, list) or any(not isinstance(row, list) for row in rows):
        raise bad('field "keyboard" must be an Array of Arrays')
    for button in (button for row in rows for button in row):
        text = button.get("text") if isinstance(button, dict) else button
        if not isinstance(text, str) or not text.strip():
            raise bad("keyboard button text must be non-empty")
