"""The frames of an MPEG audio file (mp3), counted one by one: its decoder plays what is there and guesses the rest."""

import bisect
import contextlib
import io
import math
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import NamedTuple

from sedjax.core.files import MEBIBYTE

VERSION_1 = 3
LAYER_3, LAYER_2, LAYER_1 = 1, 2, 3  # as a header has them
BIT_RATES = {  # kbit/s, by version 1 or not and layer
    (True, LAYER_1): tuple(range(32, 449, 32)),
    (True, LAYER_2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, LAYER_3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, LAYER_1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, LAYER_2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, LAYER_3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
SAMPLE_RATES_HZ = (44100, 48000, 32000)
HALVINGS = {VERSION_1: 0, 2: 1, 0: 2}  # of the sample rate, by the code of a version
DECODER_DELAY = 529  # samples that the decoder of layer III leaves out at the beginning

_NOTE = re.compile(rb"(\[src/libmpg123/|Note: |Warning: |main: )|\s*$")
_ONE_AT_A_TIME = threading.Lock()


class Frames(NamedTuple):
    """The frames of a file.

    Attributes:
      header: the four bytes that the first one begins with.
      runs: where frames that follow each other begin and end.
      whole: how many there are.
      missing: how many are damaged or incomplete, as far as can be told.
      stated: how many of them hold sound, as a header in the first one says (Xing or Info); None without.
    """

    header: bytes
    runs: list[tuple[int, int]]
    whole: int
    missing: int
    stated: int | None

    @property
    def is_layer_3(self) -> bool:
        return self.header[1] >> 1 & 3 == LAYER_3

    @property
    def samples_each(self) -> int:
        return _samples(self.header)

    @property
    def samples(self) -> int:
        """Of all frames that are there or were, for each channel, if none says how many there are."""
        return max((self.whole + self.missing) * self.samples_each - DECODER_DELAY, 0)


def scan(raw: io.BufferedIOBase) -> Frames | None:
    """The frames of a file; None if there are none, or of a free bit rate."""
    window = _Window(raw)
    header, runs, whole, stated, junk = b"", [], 0, None, 0
    position = expected = 0  # where the last frame or tag ends
    while position < window.length:
        here = window.at(position, 4)
        size = _frame_bytes(here)
        if size and (not whole or _kind(here) == _kind(header)) and position + size <= window.length and (
                position != expected or whole or _follows(window, position + size, here)):
            if not whole:
                header, stated = here, _stated(window.at(position, size))
            junk += position - expected
            if runs and runs[-1][1] == position:
                runs[-1] = (runs[-1][0], position + size)
            else:
                runs.append((position, position + size))
            whole += 1
            position = expected = position + size
        elif tag := _tag_bytes(window, position):
            junk += position - expected
            position = expected = position + tag
        elif (following := _next(window, position + 1, header)) is not None:
            position = following
        else:
            break
    if not whole:
        return None
    frame_bytes = sum(end - start for start, end in runs) / whole
    rest = window.at(min(expected, window.length), MEBIBYTE)
    if rest.strip(b"\0"):
        junk += max(window.length - expected, 0)
    missing = math.ceil(junk / frame_bytes)
    if stated is not None and stated < whole - 1:  # of one of several files in a row, for example
        stated = None
    return Frames(header, runs, whole, missing, stated)


class Clean(io.RawIOBase):
    """A file that holds the whole frames of another only, after one that says how many there are."""

    def __init__(self, raw: io.BufferedIOBase, frames: Frames):
        super().__init__()
        first = _length_frame(frames.header, frames.whole) if frames.stated is None else b""
        self._raw, self._first, self._position = raw, first, 0
        self._starts = [len(first)]  # of each run, in this file
        for start, end in frames.runs:
            self._starts.append(self._starts[-1] + end - start)
        self._runs = frames.runs

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and (part := self._part(len(view) - filled)):
            view[filled : filled + len(part)] = part
            filled += len(part)
            self._position += len(part)
        return filled

    def _part(self, size: int) -> bytes:
        """Bytes from here on, of the same run."""
        if self._position < len(self._first):
            return self._first[self._position : self._position + size]
        run = bisect.bisect_right(self._starts, self._position) - 1
        if run >= len(self._runs):
            return b""
        self._raw.seek(self._runs[run][0] + self._position - self._starts[run])
        return self._raw.read(min(size, self._starts[run + 1] - self._position))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what libmpg123 writes to file descriptor 2 off the screen; what others write there meanwhile comes after.

    There is no other way: libsndfile does not let it be told. Threads take turns.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        try:
            written = stack.enter_context(tempfile.TemporaryFile())
            screen = os.dup(2)
        except OSError:  # no temporary folder, or no descriptor 2: then nothing is kept
            yield
            return
        try:
            os.dup2(written.fileno(), 2)
            yield
        finally:
            os.dup2(screen, 2)
            written.seek(0)
            for line in written.read().splitlines(keepends=True):
                if not _NOTE.match(line):
                    os.write(screen, line)
            os.close(screen)


class _Window:
    """Any bytes of a file, read a megabyte at a time."""

    def __init__(self, raw: io.BufferedIOBase):
        self._raw, self._start, self._held = raw, 0, b""
        self.length = raw.seek(0, io.SEEK_END)

    def at(self, position: int, size: int) -> bytes:
        if not self._start <= position <= position + size <= self._start + len(self._held):
            self._raw.seek(position)
            self._start, self._held = position, self._raw.read(max(size, MEBIBYTE))
        return self._held[position - self._start : position - self._start + size]


def _tag_bytes(window: _Window, position: int) -> int:
    """Length of the tag that begins here; 0 if none does."""
    start = window.at(position, 16)
    if start.startswith(b"ID3") and len(start) > 10:  # seven bits a byte
        return 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(start[6:10])) + 10 * (start[5] >> 4 & 1)
    if start.startswith(b"TAG"):
        return 128
    if start.startswith(b"APETAGEX") and len(start) == 16:
        return 32 + int.from_bytes(start[12:16], "little")
    if start.startswith(b"LYRICSBEGIN"):
        return window.length - position
    return 0


def _next(window: _Window, position: int, like: bytes) -> int | None:
    """Where the next two frames begin from `position` on, like those before if there were any."""
    while held := window.at(position, min(MEBIBYTE, window.length - position)):
        for match in re.finditer(rb"\xff[\xe0-\xff]", held):
            start = position + match.start()
            here = window.at(start, 4)
            size = _frame_bytes(here)
            if size and (not like or _kind(here) == _kind(like)) and start + size <= window.length and _follows(
                    window, start + size, here):
                return start
        if position + len(held) >= window.length:
            return None
        position += len(held) - 1
    return None


def _follows(window: _Window, position: int, header: bytes) -> bool:
    """Whether the file ends at `position`, or goes on with a frame like the one that begins with `header`, or a tag."""
    here = window.at(position, 4)
    if not here or here.startswith((b"TAG", b"ID3", b"APET", b"LYRI")):
        return True
    return _frame_bytes(here) > 0 and _kind(here) == _kind(header)


def _kind(header: bytes) -> tuple[int, int]:
    """Version, layer and sample rate, which are those of all frames of a file."""
    return header[1] & 0x1E, header[2] & 0x0C


def _samples(header: bytes) -> int:
    """Samples of the frame that begins with these four bytes, for each channel."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    return 384 if layer == LAYER_1 else 1152 if layer == LAYER_2 or version == VERSION_1 else 576


def _stated(frame: bytes) -> int | None:
    """The number of frames that this first one says that there are, where the decoder looks for it."""
    place = _length_place(frame)
    flags = frame[place + 4 : place + 8]
    if frame[place : place + 4] in (b"Xing", b"Info") and not any(frame[6:place]) and flags[-1:] and flags[-1] & 1:
        return int.from_bytes(frame[place + 8 : place + 12], "big")
    return None


def _length_place(header: bytes) -> int:
    """Where in the first frame its length may be: after what would say how the sound is packed, all zeros."""
    is_first, is_mono = header[1] >> 3 & 3 == VERSION_1, header[3] >> 6 == 3
    return 4 + {(True, False): 32, (False, True): 9}.get((is_first, is_mono), 17)


def _length_frame(header: bytes, frames: int) -> bytes:
    """A frame like those of a file, of layer III, without sound, that says how many there are."""
    bit_rate = BIT_RATES[header[1] >> 3 & 3 == VERSION_1, LAYER_3].index(64) + 1
    header = bytes([0xFF, header[1] | 1, bit_rate << 4 | header[2] & 0x0C, header[3]])
    said = header.ljust(_length_place(header), b"\0") + b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return said.ljust(_frame_bytes(header), b"\0")


def _frame_bytes(header: bytes) -> int:
    """Length of the frame that begins with these four bytes; 0 if they are no header, or of a free bit rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bit_rate, sample_rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version not in HALVINGS or layer == 0 or bit_rate in (0, 15) or sample_rate == 3:
        return 0
    rate_hz = SAMPLE_RATES_HZ[sample_rate] >> HALVINGS[version]
    bits = 1000 * BIT_RATES[version == VERSION_1, layer][bit_rate - 1]
    if layer == LAYER_1:
        return (12 * bits // rate_hz + padding) * 4
    return _samples(header) // 8 * bits // rate_hz + padding
