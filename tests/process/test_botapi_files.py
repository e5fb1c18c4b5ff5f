"""Files at the Bot API stand-in: both directions, with Telegram's limits."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import httpx
import pytest
from telegram import Bot, InputFile
from telegram.error import BadRequest, Forbidden, NetworkError
from telegram.request import HTTPXRequest

from kai.demo.botapi.files import MAX_DOWNLOAD, MAX_UPLOAD
from kai.demo.botapi.images import grey_png, size_of
from kai.demo.botapi.server import BotApi
from kai.demo.botapi.world import Bounds

TOKEN = "4242:secret-of-the-test"
ALICE = 1001
OPUS = b"OggS\x00\x02" + bytes(22) + b"OpusHead"


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    server = BotApi(token=TOKEN, bounds=Bounds(file_bytes=120 << 20))
    await server.start()
    server.declare_user(ALICE)
    yield server
    await server.stop()


@pytest.fixture
async def bot(api: BotApi) -> AsyncIterator[Bot]:
    pools = [HTTPXRequest(httpx_kwargs={"trust_env": False}) for _ in range(2)]
    async with Bot(
        TOKEN,
        base_url=api.base_url,
        base_file_url=api.base_file_url,
        request=pools[0],
        get_updates_request=pools[1],
    ) as one:
        yield one


async def test_a_document_arrives_with_name_type_and_bytes(api: BotApi, bot: Bot) -> None:
    sent = await bot.send_document(
        ALICE, b"hello\x00\r\nworld", filename="note.txt", caption="<b>x</b>", parse_mode="HTML"
    )
    assert sent.document is not None
    assert (sent.document.file_name, sent.document.mime_type, sent.document.file_size) == (
        "note.txt",
        "text/plain",
        13,
    )
    assert sent.caption == "x"
    assert [one.type for one in sent.caption_entities] == ["bold"]
    assert api.file_bytes(sent.document.file_id) == b"hello\x00\r\nworld"
    (call,) = api.calls("sendDocument")
    assert call.params["document"] == {"name": "note.txt", "mime": "text/plain", "size": 13}


async def test_a_file_can_be_attached_under_another_name_and_sent_again_by_its_id(api: BotApi, bot: Bot) -> None:
    attached = InputFile(io.BytesIO(b"data"), filename="a.bin", attach=True)
    sent = await bot.send_document(ALICE, attached)
    assert sent.document is not None
    again = await bot.send_document(ALICE, sent.document.file_id)
    assert again.document == sent.document
    with pytest.raises(BadRequest, match=r"(?i)wrong file identifier"):
        await bot.send_document(ALICE, "no-such-id")
    with pytest.raises(BadRequest, match=r"(?i)failed to get HTTP URL content"):
        await bot.send_document(ALICE, "https://example.org/a.pdf")
    with pytest.raises(BadRequest, match=r"(?i)type of file mismatch"):
        await bot.send_photo(ALICE, sent.document.file_id)


async def test_a_photo_must_be_a_picture_of_sane_size(api: BotApi, bot: Bot) -> None:
    sent = await bot.send_photo(ALICE, grey_png(300, 200))
    assert (sent.photo[-1].width, sent.photo[-1].height) == (300, 200)
    assert sent.photo[-1].file_size == max(size.file_size or 0 for size in sent.photo)
    assert size_of(api.file_bytes(sent.photo[0].file_id)) == (90, 60)
    for data, says in (
        (b"no picture", "IMAGE_PROCESS_FAILED"),
        (grey_png(2100, 100), "PHOTO_INVALID_DIMENSIONS"),
        (grey_png(1, 9999) + bytes(10 << 20), "too big for a photo"),
    ):
        with pytest.raises(BadRequest, match=f"(?i){says}"):
            await bot.send_photo(ALICE, data)


async def test_a_voice_note_is_sound_or_becomes_a_document(bot: Bot) -> None:
    sent = await bot.send_voice(ALICE, OPUS, duration=3)
    assert sent.voice is not None
    assert sent.voice.file_size == len(OPUS)
    assert (await bot.send_voice(ALICE, b"RIFF....WAVE", filename="a.wav")).document is not None


async def test_captions_have_1024_utf16_units(bot: Bot) -> None:
    assert (await bot.send_document(ALICE, b"x", caption="x" * 1024)).caption == "x" * 1024
    for caption in ("x" * 1025, "😀" * 513):
        with pytest.raises(BadRequest, match="Message caption is too long"):
            await bot.send_document(ALICE, b"x", caption=caption)


async def test_an_empty_or_missing_file_and_an_unknown_chat_are_refused(api: BotApi, bot: Bot) -> None:
    with pytest.raises(BadRequest, match=r"(?i)file must be non-empty"):
        await bot.send_document(ALICE, b"", filename="x")
    with pytest.raises(BadRequest, match=r"(?i)there is no document in the request"):
        await bot.send_document(ALICE, "")
    with pytest.raises(BadRequest, match="Chat not found"):
        await bot.send_document(99, b"x")
    api.block(ALICE)
    with pytest.raises(Forbidden):
        await bot.send_photo(ALICE, grey_png(5, 5))


async def test_text_of_a_file_message_cant_be_edited_as_text(bot: Bot) -> None:
    sent = await bot.send_document(ALICE, b"x")
    with pytest.raises(BadRequest, match="There is no text in the message to edit"):
        await bot.edit_message_text("y", ALICE, sent.message_id)


async def test_a_received_file_is_downloaded_through_its_path(api: BotApi, bot: Bot) -> None:
    document = api.put_file(b"for the bot", name="in.txt", mime="text/plain")
    voice = api.put_file(OPUS, kind="voice", mime="audio/ogg")
    api.say(ALICE, "read this", document=document)
    api.say(ALICE, voice=voice, duration=7)
    first, second = [update.message for update in await bot.get_updates()]
    assert first is not None
    assert first.document is not None
    assert (first.caption, first.document.file_name) == ("read this", "in.txt")
    file = await first.document.get_file()
    assert file.file_path is not None
    assert file.file_path.endswith(".txt")
    assert bytes(await file.download_as_bytearray()) == b"for the bot"
    assert second is not None
    assert second.voice is not None
    assert bytes(await (await second.voice.get_file()).download_as_bytearray()) == OPUS


async def test_a_download_needs_the_token_and_a_path_that_was_given_out(api: BotApi, bot: Bot) -> None:
    file_id = api.put_file(b"secret", name="a.txt")
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{api.base_file_url}{TOKEN}/documents/file_1.txt")).status_code == 404
        path = (await bot.get_file(file_id)).file_path
        assert path is not None
        assert (await client.get(path)).content == b"secret"
        assert (await client.get(path.replace(TOKEN, "4242:wrong"))).status_code == 404


async def test_a_file_over_20_mb_cant_be_fetched(api: BotApi, bot: Bot) -> None:
    large = api.put_file(b"", name="film.mkv", declared_size=MAX_DOWNLOAD + 1)
    api.say(ALICE, document=large)
    (update,) = await bot.get_updates()
    assert update.message is not None
    assert update.message.document is not None
    assert update.message.document.file_size == MAX_DOWNLOAD + 1
    with pytest.raises(BadRequest, match="File is too big"):
        await update.message.document.get_file()
    with pytest.raises(BadRequest, match=r"(?i)invalid file_id"):
        await bot.get_file("nonsense")


async def test_an_upload_over_50_mb_is_413_and_one_of_50_mb_passes(api: BotApi, bot: Bot) -> None:
    with pytest.raises(NetworkError, match="Request Entity Too Large"):
        await bot.send_document(ALICE, bytes(MAX_UPLOAD + 1))
    with pytest.raises(NetworkError, match="Request Entity Too Large"):
        await bot.send_document(ALICE, bytes(MAX_UPLOAD + (2 << 20)))
    assert [call.status for call in api.calls("sendDocument")] == [413, 413]
    sent = await bot.send_document(ALICE, bytes(MAX_UPLOAD))
    assert sent.document is not None
    assert sent.document.file_size == MAX_UPLOAD


async def test_old_contents_are_given_up_so_that_memory_stays_flat() -> None:
    api = BotApi(token=TOKEN, bounds=Bounds(file_bytes=1000))
    ids = [api.put_file(bytes(400)) for _ in range(4)]
    with pytest.raises(KeyError, match="given up"):
        api.file_bytes(ids[0])
    assert api.file_bytes(ids[-1]) == bytes(400)
