"""parse_mode HTML, read as strictly as Telegram reads it (https://core.telegram.org/bots/api#html-style).

A tag that isn't on the list, isn't closed, or is closed in the wrong order is an error; four named entities and all
numeric ones are decoded, everything else stands as written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kai.demo.botapi.answers import JsonDict
from kai.demo.botapi.entities import cannot_parse, check_url, utf16_length

_KINDS = {
    "b": "bold", "strong": "bold",
    "i": "italic", "em": "italic",
    "u": "underline", "ins": "underline",
    "s": "strikethrough", "strike": "strikethrough", "del": "strikethrough",
    "tg-spoiler": "spoiler", "span": "spoiler",
    "a": "text_link", "tg-emoji": "custom_emoji", "tg-time": "date_time",
    "code": "code", "pre": "pre", "blockquote": "blockquote",
}  # fmt: skip
_LANGUAGE = "class of the code tag"  # noted until the tag around it closes; entities.formatted drops it
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
_REFERENCE = re.compile(r"&(?:#x([0-9a-fA-F]{1,6})|#([0-9]{1,7})|(lt|gt|amp|quot)(?![a-zA-Z]));?")
_NAME = re.compile(r"/?[^\s>]*")
_ATTRIBUTE = re.compile(r"""([^\s=>/"']+)(?:\s*=\s*("[^"]*"|'[^']*'|[A-Za-z0-9.-]*(?=[\s>])))?""")
_BLANK = re.compile(r"\s*")


@dataclass(slots=True)
class _Open:
    """A start tag that waits for its end."""

    tag: str
    attributes: dict[str, str]
    offset: int  # UTF-16 units
    begin: int  # characters of the result so far


def parse_html(source: str) -> tuple[str, list[JsonDict]]:
    """Text and entities of an HTML message; ApiError 400 names the byte where it goes wrong."""
    out: list[str] = []
    entities: list[JsonDict] = []
    stack: list[_Open] = []
    offset = at = 0

    def add(text: str) -> None:
        nonlocal offset
        out.append(text)
        offset += utf16_length(text)

    while True:
        begin = source.find("<", at)
        add(_decoded(source[at:] if begin < 0 else source[at:begin]))
        if begin < 0:
            break
        name = _NAME.match(source, begin + 1)
        tag = name.group().lower() if name else ""
        at = begin + 1 + len(tag)
        if tag.startswith("/"):
            at = _end_of_end_tag(source, at, begin)
            _close(tag[1:], stack, entities, out, offset=offset, place=_bytes(source, begin))
            continue
        if at >= len(source):
            raise cannot_parse(f"Unclosed start tag at byte offset {_bytes(source, begin)}")
        if tag not in _KINDS:
            raise cannot_parse(f'Unsupported start tag "{tag}" at byte offset {_bytes(source, begin)}')
        attributes, at = _attributes(source, at, tag, begin)
        if tag == "span" and attributes.get("class") != "tg-spoiler":
            raise cannot_parse(f'Tag "span" must have class "tg-spoiler" at byte offset {_bytes(source, begin)}')
        stack.append(_Open(tag, attributes, offset, len(out)))
    if stack:
        raise cannot_parse(f'Can\'t find end tag corresponding to start tag "{stack[-1].tag}"')
    return "".join(out), entities


def _attributes(source: str, at: int, tag: str, begin: int) -> tuple[dict[str, str], int]:
    """The attributes of a start tag and the place after its ">"."""
    found: dict[str, str] = {}
    while True:
        blank = _BLANK.match(source, at)
        at = blank.end() if blank else at
        if at >= len(source):
            raise cannot_parse(f'Unclosed start tag "{tag}" at byte offset {_bytes(source, begin)}')
        if source[at] == ">":
            return found, at + 1
        match = _ATTRIBUTE.match(source, at)
        if match is None:
            raise cannot_parse(f'Empty attribute name in the tag "{tag}" at byte offset {_bytes(source, begin)}')
        at = match.end()
        if match.group(2) is None and source[at : at + 1] == "=":
            raise cannot_parse(f'Unclosed start tag "{tag}" at byte offset {_bytes(source, begin)}')
        value = match.group(2) or ""
        found[match.group(1)] = _decoded(value[1:-1]) if value[:1] in ('"', "'") else value.lower()


def _end_of_end_tag(source: str, at: int, begin: int) -> int:
    blank = _BLANK.match(source, at)
    at = blank.end() if blank else at
    if source[at : at + 1] != ">":
        raise cannot_parse(f"Unclosed end tag at byte offset {_bytes(source, begin)}")
    return at + 1


def _close(tag: str, stack: list[_Open], entities: list[JsonDict], out: list[str], *, offset: int, place: int) -> None:
    """Match an end tag with the innermost start tag and note the entity, unless it covers nothing."""
    if not stack:
        raise cannot_parse(f"Unexpected end tag at byte offset {place}")
    opened = stack.pop()
    if tag not in ("", opened.tag):
        raise cannot_parse(f'Unmatched end tag at byte offset {place}, expected "</{opened.tag}>", found "</{tag}>"')
    length = offset - opened.offset
    if length <= 0:
        return
    entity: JsonDict = {"type": _KINDS[opened.tag], "offset": opened.offset, "length": length}
    if opened.tag == "a":
        url = opened.attributes.get("href") or "".join(out[opened.begin :])
        if check_url(url):
            return  # Telegram shows the text and forgets a link that leads nowhere
        entity["url"] = url
    elif opened.tag == "tg-emoji":
        entity["custom_emoji_id"] = opened.attributes.get("emoji-id", "")
    elif opened.tag == "tg-time":
        if not opened.attributes.get("unix", "").isdecimal():
            return
        entity["unix_time"] = int(opened.attributes["unix"])
        if opened.attributes.get("format"):
            entity["date_time_format"] = opened.attributes["format"]
    elif opened.tag == "blockquote" and "expandable" in opened.attributes:
        entity["type"] = "expandable_blockquote"
    elif opened.tag in ("pre", "code"):
        if _joins_last(entity, opened, entities):
            return
        entity[_LANGUAGE] = _language(opened)
    entities.append(entity)


def _joins_last(entity: JsonDict, opened: _Open, entities: list[JsonDict]) -> bool:
    """`<pre><code class="language-x">` is one entity: the inner one is already there and takes both roles."""
    last = entities[-1] if entities else {}
    if (last.get("offset"), last.get("length")) != (entity["offset"], entity["length"]):
        return False
    if {last.get("type"), entity["type"]} != {"code", "pre"}:
        return False
    last["type"] = "pre"
    last["language"] = last.pop(_LANGUAGE, "") or _language(opened)
    return True


def _language(opened: _Open) -> str:
    name = opened.attributes.get("class", "")
    return name.removeprefix("language-") if name.startswith("language-") else ""


def _decoded(text: str) -> str:
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    hexadecimal, decimal, name = match.groups()
    if name:
        return _NAMED[name]
    number = int(hexadecimal, 16) if hexadecimal else int(decimal)
    if number == 0 or number >= 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        return match.group()
    return chr(number)


def _bytes(source: str, at: int) -> int:
    return len(source[:at].encode())
