"""Text with entities: what Telegram accepts, and what it makes of it.

Offsets and lengths count UTF-16 units (https://core.telegram.org/bots/api#messageentity). `formatted` checks text and
entities and returns them as they would be stored: control characters and outer blank space gone, neighbours of one
style joined, styles cut out where code stands. Two things are stricter here than at Telegram, which drops
silently what it can't show: entities that overlap without one holding the other, and kinds that must not hold each
other. A renderer that makes those has a fault, and a test should see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kai.demo.botapi.answers import ApiError, JsonDict, bad

MAX_ENTITIES = 100  # Telegram ignores what comes after these

STYLES = ("bold", "italic", "underline", "strikethrough", "spoiler")
CODE = ("code", "pre")
QUOTES = ("blockquote", "expandable_blockquote")
LINKS = ("text_link", "text_mention", "custom_emoji", "date_time")
FOUND_BY_TELEGRAM = (
    "mention", "hashtag", "cashtag", "bot_command", "url", "email", "phone_number", "bank_card_number",
)  # fmt: skip
_ORDER = {kind: at for at, kind in enumerate((*QUOTES, *LINKS, *STYLES, *CODE))}

_UNWANTED = re.compile("[\x00-\x09\x0b-\x1f\u2028-\u202e\u0333\u033f\u030a]")
_VANISH = re.compile("[\r\u2028-\u202e\u0333\u033f\u030a]")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(?!\d)")
_HOST = re.compile(r"(?:[^/?#@]*@)?(\[[0-9a-fA-F:.]+\]|[^/?#:\s]+)(?::\d{1,5})?(?:[/?#].*)?", re.DOTALL)


def utf16_length(text: str) -> int:
    """Length in UTF-16 units, the unit of every offset and limit here."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def utf16_slice(text: str, offset: int, length: int) -> str:
    """The part of a text that an entity covers."""
    if text.isascii():
        return text[offset : offset + length]
    return text.encode("utf-16-le")[2 * offset : 2 * (offset + length)].decode("utf-16-le")


def cannot_parse(what: str) -> ApiError:
    """The refusal that every fault in entities or markup gets."""
    return bad(f"can't parse entities: {what}")


def formatted(text: str, entities: object, *, empty_is_fine: bool = False) -> tuple[str, list[JsonDict]]:
    """Check and normalise; raises ApiError 400. `entities` is what JSON gave: an array of MessageEntity, or None."""
    checked = _checked(text, entities)
    text, checked = _cleaned(text, checked)
    text, checked = _trimmed(text, checked)
    if not text:
        if empty_is_fine:
            return "", []
        raise bad("text must be non-empty")
    _check_nesting(checked)
    return text, _normalised(checked)


def check_url(url: str) -> str | None:
    """What is wrong with a URL in Telegram's eyes, or None. Good: http, https, tg, ton, or a bare host with a dot."""
    scheme = _SCHEME.match(url.lower())
    name = scheme.group(1) if scheme else ""
    rest = url[scheme.end() :].removeprefix("//") if scheme else url
    if name in ("tg", "ton"):
        return None if re.match(r"[A-Za-z0-9_-]+", rest) else "Wrong tg URL"
    if name not in ("", "http", "https"):
        return "Unsupported URL protocol"
    match = _HOST.fullmatch(rest)
    if match is None:
        return "Wrong HTTP URL"
    host = match.group(1)
    return None if host.startswith("[") or "." in host.strip(".") else "Wrong HTTP URL"


def _checked(text: str, entities: object) -> list[JsonDict]:
    """Each entity for itself: form, kind, place in the text, what its kind needs."""
    if entities is None:
        return []
    if not isinstance(entities, list):
        raise cannot_parse("expected an Array of MessageEntity")
    size = utf16_length(text)
    inside_pair = _inside_pairs(text) if size != len(text) else frozenset()
    result: list[JsonDict] = []
    for entity in entities:
        if not isinstance(entity, dict):
            raise cannot_parse("expected an Object")
        kind, offset, length = entity.get("type"), entity.get("offset"), entity.get("length")
        if not isinstance(kind, str) or not kind:
            raise cannot_parse("Type is not specified")
        if type(offset) is not int or type(length) is not int:
            raise cannot_parse(f"offset and length of the {kind} entity must be of type Number")
        if kind in FOUND_BY_TELEGRAM:
            continue  # Telegram finds these itself and ignores them in requests
        if kind not in _ORDER:
            raise cannot_parse(f"Unsupported type specified: {kind}")
        if offset < 0:
            raise cannot_parse(f"Receive an entity with incorrect offset {offset}")
        if length <= 0:
            raise cannot_parse(f"Receive an entity with incorrect length {length}")
        if offset >= size:
            raise cannot_parse(f"Entity begins after the end of the text at UTF-16 offset {offset}")
        if offset + length > size:
            raise cannot_parse(
                f"Entity beginning at UTF-16 offset {offset} ends after the end of the text at UTF-16 offset "
                f"{offset + length}"
            )
        if offset in inside_pair:
            raise cannot_parse(f"Entity begins in a middle of a UTF-16 symbol at UTF-16 offset {offset}")
        if offset + length in inside_pair:
            raise cannot_parse(
                f"Entity beginning at UTF-16 offset {offset} ends in a middle of a UTF-16 symbol at UTF-16 offset "
                f"{offset + length}"
            )
        result.append({"type": kind, "offset": offset, "length": length, **_extra(kind, entity)})
    result.sort(key=_sort_key)
    return result[:MAX_ENTITIES]


def _extra(kind: str, entity: JsonDict) -> JsonDict:
    """The fields that only some kinds have."""
    if kind == "text_link":
        url = entity.get("url")
        if not isinstance(url, str) or not url:
            raise cannot_parse('Field "url" must be of type String')
        fault = check_url(url)
        if fault:
            raise cannot_parse(f"Entity URL '{url}' is invalid: {fault}")
        return {"url": url}
    if kind == "pre":
        language = entity.get("language")
        if language is not None and not isinstance(language, str):
            raise cannot_parse('Field "language" must be of type String')
        return {"language": language} if language else {}
    if kind == "text_mention":
        user = entity.get("user")
        if not isinstance(user, dict) or type(user.get("id")) is not int:
            raise cannot_parse('Field "user" must be an Object with the identifier of a user')
        return {"user": {"is_bot": False, "first_name": f"User {user['id']}", **user}}
    if kind == "custom_emoji":
        number = entity.get("custom_emoji_id")
        if not isinstance(number, str) or not number.isdecimal():
            raise cannot_parse("Invalid custom emoji identifier specified")
        return {"custom_emoji_id": number}
    if kind == "date_time":
        moment = entity.get("unix_time")
        if type(moment) is not int:
            raise cannot_parse('Field "unix_time" must be of type Number')
        layout = entity.get("date_time_format")
        return {"unix_time": moment, **({"date_time_format": layout} if isinstance(layout, str) else {})}
    return {}


def _cleaned(text: str, entities: list[JsonDict]) -> tuple[str, list[JsonDict]]:
    """Control characters become blanks, invisible direction marks and carriage returns go."""
    if not _UNWANTED.search(text):
        return text, entities
    kept: list[str] = []
    gone_before: list[int] = []  # per UTF-16 unit of the old text
    gone = 0
    for char in text:
        gone_before.extend([gone] * (2 if char > "\uffff" else 1))
        if _VANISH.match(char):
            gone += 1
        else:
            kept.append(" " if _UNWANTED.match(char) else char)
    gone_before.append(gone)
    moved = []
    for entity in entities:
        begin, end = entity["offset"], entity["offset"] + entity["length"]
        length = entity["length"] - (gone_before[end] - gone_before[begin])
        if length > 0:
            moved.append({**entity, "offset": begin - gone_before[begin], "length": length})
    return "".join(kept), moved


def _trimmed(text: str, entities: list[JsonDict]) -> tuple[str, list[JsonDict]]:
    """Blanks and line ends go at the end; at the beginning as far as no entity covers them."""
    stripped = text.rstrip(" \n")
    if len(stripped) != len(text):
        size = utf16_length(stripped)
        entities = [
            {**entity, "length": min(entity["length"], size - entity["offset"])}
            for entity in entities
            if entity["offset"] < size
        ]
    lead = len(stripped) - len(stripped.lstrip(" \n"))
    if entities:
        lead = min(lead, *(entity["offset"] for entity in entities))
    if lead:
        entities = [{**entity, "offset": entity["offset"] - lead} for entity in entities]
    return stripped[lead:], entities


def _check_nesting(entities: list[JsonDict]) -> None:
    """Every pair either apart or one inside the other, and of kinds that may hold each other."""
    open_ones: list[JsonDict] = []
    for entity in sorted(entities, key=_sort_key):
        while open_ones and _end(open_ones[-1]) <= entity["offset"]:
            open_ones.pop()
        for outer in open_ones:
            if _end(entity) > _end(outer):
                raise cannot_parse(
                    f"entities overlap: {outer['type']} at UTF-16 offset {outer['offset']} ends inside "
                    f"{entity['type']} at UTF-16 offset {entity['offset']}"
                )
            if _must_not_hold(outer["type"], entity["type"]):
                raise cannot_parse(
                    f"{outer['type']} at UTF-16 offset {outer['offset']} can't contain {entity['type']} at UTF-16 "
                    f"offset {entity['offset']}"
                )
        open_ones.append(entity)


def _must_not_hold(outer: str, inner: str) -> bool:
    if outer in CODE:
        return True
    if outer in LINKS:
        return inner not in STYLES
    return outer in QUOTES and inner in QUOTES


def _normalised(entities: list[JsonDict]) -> list[JsonDict]:
    """Styles joined per kind and cut out where code stands, all sorted as Telegram sends them."""
    if not entities:
        return []
    code = [(entity["offset"], _end(entity)) for entity in entities if entity["type"] in CODE]
    result = [entity for entity in entities if entity["type"] not in STYLES]
    for style in STYLES:
        spans = [(entity["offset"], _end(entity)) for entity in entities if entity["type"] == style]
        for begin, end in _without(_joined(spans), code):
            result.append({"type": style, "offset": begin, "length": end - begin})
    result.sort(key=_sort_key)
    return result


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def _without(spans: list[tuple[int, int]], holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    for hole_begin, hole_end in holes:
        rest: list[tuple[int, int]] = []
        for begin, end in spans:
            rest.extend(
                part for part in ((begin, min(end, hole_begin)), (max(begin, hole_end), end)) if part[0] < part[1]
            )
        spans = rest
    return spans


def _inside_pairs(text: str) -> frozenset[int]:
    """The UTF-16 offsets at which an entity must neither begin nor end: the middles of surrogate pairs."""
    found = []
    at = 0
    for char in text:
        if char > "\uffff":
            found.append(at + 1)
            at += 2
        else:
            at += 1
    return frozenset(found)


def _end(entity: JsonDict) -> int:
    return int(entity["offset"] + entity["length"])


def _sort_key(entity: JsonDict) -> tuple[Any, ...]:
    return entity["offset"], -entity["length"], _ORDER[entity["type"]]
