"""Number of samples in a FLAC file, from its last frame: the header may state fewer or none."""

import io

from sedjax.audio.window import Window

TAIL_BYTES = 1 << 18  # larger than any frame, except with many channels
MOST_HEADERS = 2  # audio data occasionally looks like a frame header
STREAMINFO = 0
_BLOCKS = {1: 192} | {code: 576 << code - 2 for code in range(2, 6)} | {code: 256 << code - 8 for code in range(8, 16)}


def num_samples(raw: io.BufferedIOBase) -> int | None:
    """Samples per channel up to the end of the last frame; None if the file does not end with a complete frame."""
    window = Window(raw)
    start = window.at(0, 42)
    if start[:4] != b"fLaC" or len(start) < 42 or start[4] & 0x7F != STREAMINFO:
        return None
    block = int.from_bytes(start[10:12], "big")  # block size of all frames, if they are numbered by frame
    tail = window.at(max(window.length - TAIL_BYTES, 0), TAIL_BYTES)
    position, headers = len(tail), 0
    while headers < MOST_HEADERS and (position := tail.rfind(b"\xff", 0, position)) >= 0:
        header = tail[position : position + 16]
        if len(header) > 6 and header[1] & 0xFE == 0xF8 and (end := _end(header, block)):
            headers += 1
            if not _crc(tail[position:], 16):
                return end
    return None


def _end(header: bytes, block: int) -> int | None:
    """End of the frame that starts with `header`, in samples; None if it is not a frame."""
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    more = max(ones - 1, 0)
    if ones in (1, 8) or any(byte & 0xC0 != 0x80 for byte in header[5 : 5 + more]):
        return None
    number = header[4] & (0x7F if not ones else 0x7F >> ones)
    for byte in header[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    place, code, rate = 5 + more, header[2] >> 4, header[2] & 0xF
    size = _BLOCKS.get(code)
    if code in (6, 7):
        size = int.from_bytes(header[place : place + code - 5], "big") + 1
        place += code - 5
    place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if not size or len(header) <= place or _crc(header[: place + 1], 8):
        return None
    return size + (number if header[1] & 1 else number * block)


def _crc(content: bytes, bits: int) -> int:
    """CRC of `content`; 0 if its last bytes are the checksum of those before."""
    table = _TABLES[bits]
    crc, mask = 0, (1 << bits) - 1
    for byte in content:
        crc = (crc << 8 & mask) ^ table[crc >> bits - 8 ^ byte]
    return crc


def _table(bits: int, polynomial: int) -> list[int]:
    table = [byte << bits - 8 for byte in range(256)]
    for _ in range(8):
        table = [crc << 1 ^ (polynomial if crc >> bits - 1 else 0) for crc in table]
    return table


_TABLES = {8: _table(8, 0x107), 16: _table(16, 0x18005)}
