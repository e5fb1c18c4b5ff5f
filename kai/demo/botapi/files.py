"""Files in both directions: kept in memory, the oldest contents given up when there are too many bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePosixPath

from kai.demo.botapi.answers import JsonDict, bad
from kai.demo.botapi.images import grey_png, size_of

MAX_DOWNLOAD = 20 << 20  # bytes that getFile hands out
MAX_UPLOAD = 50 << 20  # bytes that a bot may send
MAX_PHOTO = 10 << 20
_SMALL_SIDE = 90  # pixels, the small size beside every photo

_FOLDERS = {"document": "documents", "photo": "photos", "voice": "voice"}


@dataclass(slots=True)
class Upload:
    """A file as it came in: name and type as the sender says, and the bytes."""

    name: str
    mime: str
    data: bytes


@dataclass(slots=True)
class StoredFile:
    """A file that has an id. `data` is None when only its size was declared or its bytes were given up."""

    file_id: str
    unique_id: str
    number: int
    kind: str
    name: str
    mime: str
    size: int
    data: bytes | None
    width: int = 0
    height: int = 0

    def wire(self) -> JsonDict:
        """The fields that every kind of file has in the Bot API."""
        return {"file_id": self.file_id, "file_unique_id": self.unique_id, "file_size": self.size}


class FileStore:
    """Every file of the bot by its id; at most `capacity` bytes are kept."""

    def __init__(self, *, capacity: int = 256 << 20) -> None:
        self._capacity = capacity
        self._held = 0
        self._files: dict[str, StoredFile] = {}
        self._with_data: OrderedDict[str, None] = OrderedDict()
        self._paths: dict[str, str] = {}  # path of getFile → file id

    def add(self, upload: Upload, *, kind: str, declared_size: int | None = None) -> StoredFile:
        """Keep a file. With `declared_size` only its size is kept: a large file that nobody needs to read."""
        number = len(self._files) + 1
        size = len(upload.data) if declared_size is None else declared_size
        file = StoredFile(
            file_id=f"{kind[:3].upper()}-{number:08d}-kaidemo",
            unique_id=f"u{number:08d}",
            number=number,
            kind=kind,
            name=upload.name,
            mime=upload.mime,
            size=size,
            data=upload.data if declared_size is None else None,
        )
        if kind == "photo" and declared_size is None:
            file.width, file.height = size_of(upload.data) or (0, 0)
        self._files[file.file_id] = file
        if file.data is not None:
            self._held += size
            self._with_data[file.file_id] = None
            self._give_up_old()
        return file

    def get(self, file_id: str) -> StoredFile | None:
        """The file of an id, None when there is none."""
        return self._files.get(file_id)

    def path_for_download(self, file: StoredFile) -> str:
        """What getFile answers: a path that can be fetched. ApiError 400 for what can't."""
        if file.size > MAX_DOWNLOAD:
            raise bad("file is too big")
        if file.data is None:
            raise bad("wrong file_id or the file is temporarily unavailable")
        suffix = ".oga" if file.kind == "voice" else PurePosixPath(file.name).suffix
        path = f"{_FOLDERS[file.kind]}/file_{file.number}{suffix}"
        self._paths[path] = file.file_id
        return path

    def at_path(self, path: str) -> StoredFile | None:
        """The file behind a path that getFile gave out."""
        file_id = self._paths.get(path)
        return self._files.get(file_id) if file_id else None

    def photo_sizes(self, file: StoredFile) -> list[JsonDict]:
        """The array that a message's photo is: smaller sizes first, the picture itself last."""
        full = {**file.wire(), "width": file.width, "height": file.height}
        longest = max(file.width, file.height)
        if longest <= _SMALL_SIDE:
            return [full]
        width = max(1, file.width * _SMALL_SIDE // longest)
        height = max(1, file.height * _SMALL_SIDE // longest)
        small = self.add(Upload("small.png", "image/png", grey_png(width, height)), kind="photo")
        return [{**small.wire(), "width": width, "height": height}, full]

    def _give_up_old(self) -> None:
        while self._held > self._capacity and len(self._with_data) > 1:
            oldest, _ = self._with_data.popitem(last=False)
            file = self._files[oldest]
            self._held -= len(file.data or b"")
            file.data = None
