"""Checks that an Ogg file (Vorbis, Opus) is complete: its decoder silently skips damaged and incomplete pages."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sedjax.audio.window import Window
from sedjax.core.errors import UserError

CAPTURE = b"OggS"
HEADER = struct.Struct("<4sBBqIIIB")  # capture, version, flags, end, stream, number, checksum, segments
FIRST, LAST = 2, 4  # flags
SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex")  # start of the first page of an audio stream
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """A page of an Ogg file.

    Attributes:
      flags, stream, number: fields of the page header; flags 0 and otherwise -1 if it is missing.
      end: samples of the stream up to the end of the page; -1 if no packet ends in it.
      content: packets of the page; None if the page is truncated.
    """

    flags: int
    end: int
    stream: int
    number: int
    content: bytes | None


def ending(raw: io.BufferedIOBase, name: str) -> tuple[int, bool]:
    """The end of the audio stream in a file.

    Returns:
      The samples of an incomplete page, at the stream's own rate (48 kHz for Opus), and whether the last page is marked
      as the last.

    Raises:
      UserError: a page is damaged or missing, or there are several streams.
    """
    last, end, longest = None, 0, 0
    for page in _pages(Window(raw), name):
        if page.flags & FIRST and page.content is not None and page.content.startswith(SOUND):
            if last:
                raise UserError(f"{name} has several audio streams, but only the first would be read: split it into "
                                "files of one stream each.")
            last = page
        elif last and page.content is None and page.stream in (last.stream, -1):
            return page.end - end if page.end > end else longest, False
        elif last and page.stream == last.stream:
            if page.number != last.number + 1:
                raise UserError(f"{name} is damaged: the pages between {last.number:,} and {page.number:,} are "
                                "missing.")
            last = page
            if page.end > 0:
                longest, end = max(longest, page.end - end), page.end
    return 0, bool(last and last.flags & LAST)


def _pages(window: Window, name: str) -> Iterator[Page]:
    """The pages of a file; the last may be incomplete. Raises UserError if a page is damaged."""
    position, is_ended = 0, False
    while (start := window.find(CAPTURE, position)) >= 0 and start + HEADER.size <= window.length:
        _, _, flags, end, stream, number, checksum, segments = HEADER.unpack(window.at(start, HEADER.size))
        header_bytes = HEADER.size + segments
        size = header_bytes + sum(window.at(start + HEADER.size, segments))
        position = start + size
        if position > window.length:
            yield Page(flags, end, stream, number, None)
            return
        page = window.at(start, size)
        if _checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise UserError(f"{name} is damaged: the checksum of its page {number:,} is wrong.")
        is_ended = bool(flags & LAST)
        yield Page(flags, end, stream, number, page[header_bytes:])
    if position < window.length and (start >= 0 or not is_ended):
        yield Page(0, -1, -1, -1, None)


def _checksum(page: bytes) -> int:
    """The CRC of Ogg: zlib's with the bits of each byte reversed, and without its two inversions."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
