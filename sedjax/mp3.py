"""Whether an mp3 file is whole, which its decoder does not say: it plays what is there."""

import mmap
import os
import re

VERSION_1 = 3
BIT_RATES = {True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
             False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
SAMPLE_RATES_HZ = (44100, 48000, 32000)
HALVINGS = {VERSION_1: 0, 2: 1, 0: 2}  # of the sample rate, by the code of a version
TAIL_BYTES = 1 << 14  # about a dozen of the longest frames
TAG_BYTES = 128


def says_its_length(path: str | os.PathLike) -> bool:
    """Whether there is a Xing or LAME header with the number of frames; without, a decoder estimates it."""
    with open(path, "rb") as file:
        return re.search(rb"(?:Xing|Info)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f]", file.read(1 << 20)) is not None


def ends_within_a_frame(path: str | os.PathLike) -> bool:
    """Whether the file ends before its last frame does. Without such a frame, or of another layer than III: False."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        tail = file.read()
    if tail[-TAG_BYTES:].startswith(b"TAG"):
        tail = tail[:-TAG_BYTES]
    for start in range(len(tail)):
        position = start
        headers = 0
        while (length := _frame_bytes(tail[position : position + 4])) and position + length <= len(tail):
            position += length
            headers += 1
        if headers >= 4:  # what looks like a header may be sound, but not four times in a row
            rest = tail[position:]
            return bool(length) or (0 < len(rest) < 4 and rest[0] == 0xFF)
    return False


def num_samples(path: str | os.PathLike) -> int:
    """Samples of a file that is not empty, counted frame by frame up to the first that is damaged."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = 0
        if content[:3] == b"ID3":  # a tag that gives its length seven bits a byte
            position = 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(content[6:10]))
        samples = 0
        while length := _frame_bytes(content[position : position + 4]):
            samples += 1152 if content[position + 1] >> 3 & 3 == VERSION_1 else 576
            position += length
        return samples


def _frame_bytes(header: bytes) -> int:
    """Length of the frame that begins with these four bytes; 0 if they are no header of layer III."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or header[1] >> 1 & 3 != 1:
        return 0
    version, bit_rate, sample_rate, padding = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version not in HALVINGS or bit_rate in (0, 15) or sample_rate == 3:
        return 0
    is_first = version == VERSION_1
    rate_hz = SAMPLE_RATES_HZ[sample_rate] >> HALVINGS[version]
    return (144 if is_first else 72) * 1000 * BIT_RATES[is_first][bit_rate - 1] // rate_hz + padding
