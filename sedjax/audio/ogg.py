"""Checks that an Ogg file (Vorbis, Opus) is complete: its decoder silently skips damaged and incomplete pages."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sedjax.core.errors import UserError
from sedjax.core.files import MEBIBYTE

CAPTURE = b"OggS"
HEADER = struct.Struct("<4sBBqIIIB")  # capture, version, flags, end, stream, number, checksum, segments
FIRST, LAST = 2, 4  # flags
SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex")  # start of the first page of an audio stream
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """A page of an Ogg file.

    Attributes:
      flags, stream, number: fields of the page header.
      end: samples of the stream up to the end of the page; -1 if no packet ends in it.
      is_whole: False if the page is truncated; then its header may be missing too, and its fields are -1.
      content: bytes of the page.
    """

    flags: int
    end: int
    stream: int
    number: int
    is_whole: bool
    content: bytes


class Ending(NamedTuple):
    """The end of the audio stream in a file.

    Attributes:
      missing_samples: samples of an incomplete page, at the stream's own rate (48 kHz for Opus).
      is_marked: whether the last page is marked as the last.
    """

    missing_samples: int
    is_marked: bool


def ending(raw: io.BufferedIOBase, name: str) -> Ending:
    """The end of the audio stream. Raises UserError if a page is damaged or missing, or there are several streams."""
    last, end, longest = None, 0, 0
    for page in _pages(raw, name):
        if page.flags & FIRST and page.is_whole and page.content.startswith(SOUND):
            if last:
                raise UserError(f"{name} has several audio streams, but only the first would be read: split it into "
                                "files of one stream each.")
            last = page
        elif last and not page.is_whole and page.stream in (last.stream, -1):
            return Ending(page.end - end if page.end > end else longest, False)
        elif last and page.stream == last.stream:
            if page.number != last.number + 1:
                raise UserError(f"{name} is damaged: the pages between {last.number:,} and {page.number:,} are "
                                "missing.")
            last = page
            if page.end > 0:
                longest, end = max(longest, page.end - end), page.end
    return Ending(0, bool(last and last.flags & LAST))


def _pages(raw: io.BufferedIOBase, name: str) -> Iterator[Page]:
    """The pages of a file; the last may be incomplete. Raises UserError if a page is damaged."""
    position, length = 0, raw.seek(0, io.SEEK_END)
    ended = False
    while position < length:
        raw.seek(position)
        header = raw.read(HEADER.size)
        if not CAPTURE.startswith(header[:4]):
            capture = _next_capture(raw, position)
            if capture is None and not ended:
                yield Page(0, -1, -1, -1, False, b"")
            if capture is None:
                return
            position = capture
            continue
        if len(header) < HEADER.size:
            yield Page(0, -1, -1, -1, False, b"")
            return
        _, _, flags, end, stream, number, checksum, segments = HEADER.unpack(header)
        sizes = raw.read(segments)
        content = raw.read(sum(sizes))
        position += HEADER.size + segments + sum(sizes)
        if position > length:
            yield Page(flags, end, stream, number, False, content)
            return
        if _checksum(header[:22] + bytes(4) + header[26:] + sizes + content) != checksum:
            raise UserError(f"{name} is damaged: the checksum of its page {number:,} is wrong.")
        ended = bool(flags & LAST)
        yield Page(flags, end, stream, number, True, content)


def _next_capture(raw: io.BufferedIOBase, position: int) -> int | None:
    """Position where the next page seems to start, at or after `position`; None if there is none."""
    raw.seek(position)
    buffer = b""
    while block := raw.read(MEBIBYTE):
        buffer += block
        if (offset := buffer.find(CAPTURE)) >= 0:
            return position + offset
        position += len(buffer) - 3
        buffer = buffer[-3:]
    return None


def _checksum(page: bytes) -> int:
    """The CRC of Ogg: zlib's with the bits of each byte reversed, and without its two inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
