"""API methods for files: documents, photos and voice notes out, getFile in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from kai.demo.botapi.answers import ApiError, JsonDict, bad
from kai.demo.botapi.files import MAX_PHOTO, MAX_UPLOAD, StoredFile, Upload
from kai.demo.botapi.images import size_of
from kai.demo.botapi.messages import Extras, target_chat
from kai.demo.botapi.params import Params
from kai.demo.botapi.world import World

_MAX_SIDES = 10_000  # width + height of a photo
_MAX_RATIO = 20


def send_document(world: World, params: Params) -> JsonDict:
    """sendDocument."""
    return _send(world, params, "document", lambda file: {"document": document_wire(file)})


def send_photo(world: World, params: Params) -> JsonDict:
    """sendPhoto: at most 10 MB, a real picture, not too large and not too narrow."""
    return _send(world, params, "photo", lambda file: {"photo": world.files.photo_sizes(file)})


def send_voice(world: World, params: Params) -> JsonDict:
    """sendVoice: Ogg, MP3 or M4A; anything else arrives as a document, as it does at Telegram."""
    duration = params.integer("duration")

    def content(file: StoredFile) -> JsonDict:
        if file.data is not None and not _is_sound(file.data):
            return {"document": document_wire(file)}
        return {"voice": voice_wire(file, duration)}

    return _send(world, params, "voice", content)


def get_file(world: World, params: Params) -> JsonDict:
    """getFile: up to 20 MB."""
    file_id = params.text("file_id")
    if not file_id:
        raise bad("file_id not specified")
    file = world.files.get(file_id)
    if file is None:
        raise bad("invalid file_id")
    return {**file.wire(), "file_path": world.files.path_for_download(file)}


def document_wire(file: StoredFile) -> JsonDict:
    """A Document."""
    wire = file.wire()
    if file.name:
        wire["file_name"] = file.name
    if file.mime:
        wire["mime_type"] = file.mime
    return wire


def voice_wire(file: StoredFile, duration: int) -> JsonDict:
    """A Voice."""
    return {**file.wire(), "duration": duration, "mime_type": file.mime or "audio/ogg"}


def _send(world: World, params: Params, kind: str, content: Callable[[StoredFile], JsonDict]) -> JsonDict:
    caption, entities = params.caption()
    extras = Extras(world, params)
    given = _given(world, params, kind)
    chat = target_chat(world, params)
    more = extras.fields(chat)
    file = given if isinstance(given, StoredFile) else world.files.add(given, kind=kind)
    wire = content(file)
    if caption:
        wire["caption"] = caption
    if entities:
        wire["caption_entities"] = entities
    return world.add_message(chat, world.bot, {**wire, **more}).wire


def _given(world: World, params: Params, kind: str) -> Upload | StoredFile:
    """The file of a request: a part of its own name, one named by attach://, or the id of a known file."""
    upload = params.files.get(kind)
    if upload is None:
        value = params.text(kind)
        if not value:
            raise bad(f"there is no {kind} in the request")
        upload = params.files.get(value.removeprefix("attach://"))
        if upload is None:
            return _known(world, value, kind)
    if not upload.data:
        raise bad("file must be non-empty")
    if len(upload.data) > MAX_UPLOAD:
        raise ApiError(413, "Request Entity Too Large")
    if kind == "photo":
        _check_photo(upload.data)
    return Upload(PurePosixPath(upload.name).name, upload.mime, upload.data)


def _known(world: World, value: str, kind: str) -> StoredFile:
    if value.startswith(("http://", "https://")):
        raise bad("failed to get HTTP URL content")  # the stand-in reaches nothing outside
    file = world.files.get(value)
    if file is None:
        raise bad("wrong file identifier/HTTP URL specified")
    if kind not in ("document", file.kind):
        raise bad("type of file mismatch")
    return file


def _check_photo(data: bytes) -> None:
    if len(data) > MAX_PHOTO:
        raise bad("file is too big for a photo")
    size = size_of(data)
    if size is None or 0 in size:
        raise bad("IMAGE_PROCESS_FAILED")
    if sum(size) > _MAX_SIDES or max(size) > _MAX_RATIO * min(size):
        raise bad("PHOTO_INVALID_DIMENSIONS")


def _is_sound(data: bytes) -> bool:
    return data[:4] == b"OggS" or data[:3] == b"ID3" or data[:2] in (b"\xff\xfb", b"\xff\xf3") or data[4:8] == b"ftyp"
