"""The parameters of one API call, whichever way they came: query, form, multipart or JSON body."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from tornado import httputil

from kai.demo.botapi.answers import ApiError, JsonDict, bad
from kai.demo.botapi.entities import formatted, utf16_length
from kai.demo.botapi.files import Upload
from kai.demo.botapi.html_text import parse_html

# Telegram's server counts characters, its clients UTF-16 units: the stricter of the two is the safe side.
MAX_TEXT = 4096  # UTF-16 units after parsing entities
MAX_CAPTION = 1024
_MAX_SOURCE = 1 << 15  # bytes of text before parsing
_TRUE = ("true", "yes", "1")


class Params:
    """Values by name, read as the type a method needs; what doesn't fit is an ApiError 400."""

    __slots__ = ("files", "values")

    def __init__(self, values: dict[str, Any], files: dict[str, Upload] | None = None) -> None:
        self.values = values
        self.files = files or {}

    def text(self, name: str) -> str:
        """A string, empty where missing. Numbers are taken as their digits."""
        value = self.values.get(name)
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            return json.dumps(value)
        raise bad(f'parameter "{name}" must be of type String')

    def required(self, name: str) -> str:
        """A string that has to be there."""
        value = self.text(name)
        if not value:
            raise bad(f'parameter "{name}" is required')
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """A number; digits in a string count, anything else is refused."""
        value = self.values.get(name)
        if value is None or value == "":
            return default
        try:
            return int(value) if isinstance(value, str) or type(value) is int else int(str(value))
        except ValueError:
            raise bad(f'parameter "{name}" must be of type Number') from None

    def boolean(self, name: str) -> bool:
        """True for true, yes and 1."""
        return self.text(name).lower() in _TRUE

    def structure(self, name: str, *, what: str) -> Any:
        """An array or object: JSON in a form, or the thing itself in a JSON body. None where missing."""
        value = self.values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            return value
        try:
            return _loads(value)
        except UnicodeEncodeError:
            raise bad("strings must be encoded in UTF-8") from None
        except ValueError:
            raise bad(f"can't parse {what} JSON object") from None

    def message_text(self) -> tuple[str, list[JsonDict]]:
        """text, parse_mode and entities of a message: what it will say, within the limit."""
        if not self.text("text"):
            raise bad("message text is empty")
        text, entities = self._formatted("text", "entities")
        if utf16_length(text) > MAX_TEXT:
            raise bad("message is too long")
        return text, entities

    def draft_text(self) -> tuple[str, list[JsonDict]]:
        """The same for a draft, which may be empty."""
        text, entities = self._formatted("text", "entities", empty_is_fine=True)
        if utf16_length(text) > MAX_TEXT:
            raise bad("message is too long")
        return text, entities

    def caption(self) -> tuple[str, list[JsonDict]]:
        """caption, parse_mode and caption_entities, within the shorter limit; empty is fine."""
        text, entities = self._formatted("caption", "caption_entities", empty_is_fine=True)
        if utf16_length(text) > MAX_CAPTION:
            raise bad("message caption is too long")
        return text, entities

    def _formatted(self, name: str, entities_name: str, *, empty_is_fine: bool = False) -> tuple[str, list[JsonDict]]:
        source = self.text(name)
        try:
            size = len(source) if source.isascii() else len(source.encode())
        except UnicodeEncodeError:
            raise bad("strings must be encoded in UTF-8") from None
        if size > _MAX_SOURCE:
            raise bad("text is too long")
        mode = self.text("parse_mode").lower()
        entities = None if mode not in ("", "none") else self.structure(entities_name, what="entities")
        if mode == "html":
            source, entities = parse_html(source)
        elif mode in ("markdown", "markdownv2"):
            raise bad(
                "can't parse entities: this stand-in reads no Markdown; send parse_mode HTML, or text with entities"
            )
        elif mode not in ("", "none"):
            raise bad("unsupported parse_mode")
        return formatted(source, entities, empty_is_fine=empty_is_fine)


def _loads(source: str | bytes) -> Any:
    """JSON, refused when it smuggles in half a surrogate pair, which no answer could repeat in UTF-8."""
    value = json.loads(source)
    text = source if isinstance(source, str) else source.decode()
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_params(query: str, content_type: str, body: bytes) -> Params:
    """Decode one request; a body that can't be read is an ApiError 400."""
    values: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    try:
        if query:
            values.update(parse_qsl(query, keep_blank_values=True, errors="strict"))
        if body:
            kind = content_type.partition(";")[0].strip().lower()
            if kind == "application/json":
                decoded = _loads(body)
                if not isinstance(decoded, dict):
                    raise bad("object expected as the request's JSON body")
                values.update(decoded)
            elif kind == "multipart/form-data":
                _read_multipart(content_type, body, values, files)
            elif kind in ("application/x-www-form-urlencoded", ""):
                values.update(parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict"))
            else:
                raise bad(f"can't read a request body of type {kind}")
    except UnicodeError:
        raise bad("strings must be encoded in UTF-8") from None
    except (ValueError, httputil.HTTPInputError) as fault:
        raise ApiError(400, f"Bad Request: can't parse the request: {fault}") from None
    return Params(values, files)


def _read_multipart(content_type: str, body: bytes, values: dict[str, Any], files: dict[str, Upload]) -> None:
    boundary = ""
    for part in content_type.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        if name.lower() == "boundary":
            boundary = value.strip('"')
    if not boundary:
        raise bad("the multipart boundary is missing")
    arguments: dict[str, list[bytes]] = {}
    uploads: dict[str, list[httputil.HTTPFile]] = {}
    httputil.parse_multipart_form_data(boundary.encode(), body, arguments, uploads)
    for name, contents in arguments.items():
        values[name] = contents[-1].decode()
    for name, found in uploads.items():
        last = found[-1]
        files[name] = Upload(last["filename"], last["content_type"], last["body"])
