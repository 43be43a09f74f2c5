"""Counts the frames of an MPEG audio file (mp3): the decoder plays those that are there and guesses the length."""

import contextlib
import io
import math
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, NamedTuple

from sedjax.audio.window import Window
from sedjax.core.files import MEBIBYTE

VERSION_1 = 3
LAYER_3, LAYER_2, LAYER_1 = 1, 2, 3  # header codes
BIT_RATES = {  # kbit/s, by (whether version 1, layer)
    (True, LAYER_1): tuple(range(32, 449, 32)),
    (True, LAYER_2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, LAYER_3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, LAYER_1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, LAYER_2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, LAYER_3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
SAMPLE_RATES_HZ = (44100, 48000, 32000)
HALVINGS = {VERSION_1: 0, 2: 1, 0: 2}  # how often the sample rate is halved, by version code
DECODER_DELAY = 529  # samples that the layer III decoder omits at the start
MOST_IN_MEMORY = 64 * MEBIBYTE  # larger copies go to the temporary folder

_NOTE = re.compile(rb"(\[src/libmpg123/|Note: |Warning: |main: )|\s*$")
_ONE_AT_A_TIME = threading.Lock()


class Frames(NamedTuple):
    """The frames of a file.

    Attributes:
      header: first four bytes of the first frame.
      runs: start and end of each run of consecutive frames, in bytes.
      whole: number of complete frames.
      missing: estimated number of damaged or incomplete frames.
      stated: number of frames with audio, from a Xing or Info header in the first frame; None without one.
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
    def samples(self) -> int:
        """Samples per channel of all frames, missing ones included; for files without a stated number of frames."""
        return max((self.whole + self.missing) * _samples(self.header) - DECODER_DELAY, 0)


def scan(raw: io.BufferedIOBase) -> Frames | None:
    """The frames of a file; None if there are none or their bit rate is free-format."""
    window = Window(raw)
    header, runs, complete, stated, junk = b"", [], 0, None, 0
    position = expected = 0  # end of the last frame or tag
    while position < window.length:
        candidate = window.at(position, 4)
        size = _frame_bytes(candidate)
        if size and (not complete or _kind(candidate) == _kind(header)) and position + size <= window.length and (
                position != expected or complete or _follows(window, position + size, candidate)):
            if not complete:
                header, stated = candidate, _stated(window.at(position, size))
            junk += position - expected
            if runs and runs[-1][1] == position:
                runs[-1] = (runs[-1][0], position + size)
            else:
                runs.append((position, position + size))
            complete += 1
            position = expected = position + size
        elif tag := _tag_bytes(window, position):
            junk += position - expected
            position = expected = position + tag
        elif (following := _next(window, position + 1, header)) is not None:
            position = following
        else:
            break
    if not complete:
        return None
    frame_bytes = sum(end - start for start, end in runs) / complete
    rest = window.at(min(expected, window.length), MEBIBYTE)
    if rest.strip(b"\0"):
        junk += max(window.length - expected, 0)
    missing = math.ceil(junk / frame_bytes)
    if stated is not None and stated < complete - 1:  # the header of one of several concatenated files, for example
        stated = None
    return Frames(header, runs, complete, missing, stated)


@contextlib.contextmanager
def clean(raw: io.BufferedIOBase, frames: Frames) -> Iterator[IO[bytes]]:
    """A temporary copy of the complete frames of a file, after a frame that states their number."""
    window = Window(raw)
    with tempfile.SpooledTemporaryFile(MOST_IN_MEMORY) as copy:
        if frames.stated is None:
            copy.write(_length_frame(frames.header, frames.whole))
        for start, end in frames.runs:
            for position in range(start, end, MEBIBYTE):
                copy.write(window.at(position, min(MEBIBYTE, end - position)))
        copy.seek(0)
        yield copy


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses libmpg123's output to file descriptor 2; other output is written afterwards.

    There is no other way, since libsndfile cannot turn it off. Threads take turns.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        try:
            written = stack.enter_context(tempfile.TemporaryFile())
            screen = os.dup(2)
        except OSError:  # no temporary folder, or no descriptor 2: nothing is suppressed
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


def _tag_bytes(window: Window, position: int) -> int:
    """Length of the tag at `position`; 0 if there is none."""
    start = window.at(position, 16)
    if start.startswith(b"ID3") and len(start) > 10:  # seven bits per byte
        return 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(start[6:10])) + 10 * (start[5] >> 4 & 1)
    if start.startswith(b"TAG"):
        return 128
    if start.startswith(b"APETAGEX") and len(start) == 16:
        return 32 + int.from_bytes(start[12:16], "little")
    if start.startswith(b"LYRICSBEGIN"):
        return window.length - position
    return 0


def _next(window: Window, position: int, like: bytes) -> int | None:
    """Position of the next two frames from `position` on, which match `like` unless it is empty; None without any."""
    while buffer := window.at(position, min(MEBIBYTE, window.length - position)):
        for match in re.finditer(rb"\xff[\xe0-\xff]", buffer):
            start = position + match.start()
            candidate = window.at(start, 4)
            size = _frame_bytes(candidate)
            if size and (not like or _kind(candidate) == _kind(like)) and start + size <= window.length and _follows(
                    window, start + size, candidate):
                return start
        if position + len(buffer) >= window.length:
            return None
        position += len(buffer) - 1
    return None


def _follows(window: Window, position: int, header: bytes) -> bool:
    """Whether the file ends at `position`, or continues with a tag or a frame that matches `header`."""
    following = window.at(position, 4)
    if not following or following.startswith((b"TAG", b"ID3", b"APET", b"LYRI")):
        return True
    return _frame_bytes(following) > 0 and _kind(following) == _kind(header)


def _kind(header: bytes) -> tuple[int, int]:
    """Version, layer and sample rate, which all frames of a file share."""
    return header[1] & 0x1E, header[2] & 0x0C


def _samples(header: bytes) -> int:
    """Samples per channel of the frame with this four-byte header."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    return 384 if layer == LAYER_1 else 1152 if layer == LAYER_2 or version == VERSION_1 else 576


def _stated(frame: bytes) -> int | None:
    """The number of frames stated in the first frame, where the decoder looks for it; None if not stated."""
    place = _length_place(frame)
    flags = frame[place + 4 : place + 8]
    if frame[place : place + 4] in (b"Xing", b"Info") and not any(frame[6:place]) and flags[-1:] and flags[-1] & 1:
        return int.from_bytes(frame[place + 8 : place + 12], "big")
    return None


def _length_place(header: bytes) -> int:
    """Offset of the stated length in the first frame: after the side information, which is all zeros."""
    is_version_1, is_mono = header[1] >> 3 & 3 == VERSION_1, header[3] >> 6 == 3
    return 4 + {(True, False): 32, (False, True): 9}.get((is_version_1, is_mono), 17)


def _length_frame(header: bytes, frames: int) -> bytes:
    """A layer III frame without audio that matches `header` and states the number of frames."""
    bit_rate = BIT_RATES[header[1] >> 3 & 3 == VERSION_1, LAYER_3].index(64) + 1
    header = bytes([0xFF, header[1] | 1, bit_rate << 4 | header[2] & 0x0C, header[3]])
    frame = header.ljust(_length_place(header), b"\0") + b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return frame.ljust(_frame_bytes(header), b"\0")


def _frame_bytes(header: bytes) -> int:
    """Length of the frame with this four-byte header; 0 if it is not a header or its bit rate is free-format."""
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
