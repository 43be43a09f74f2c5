"""Random access to the bytes of a file, for the modules that look into containers and codecs."""

import io
import struct

from sedjax.core.files import MEBIBYTE

SEARCHED_BYTES = 1 << 16


class Window:
    """The bytes of a file, read at least one mebibyte at a time.

    Attributes:
      length: size of the file.
    """

    def __init__(self, raw: io.BufferedIOBase):
        self._raw, self._start, self._held = raw, 0, b""
        self.length = raw.seek(0, io.SEEK_END)

    def at(self, position: int, size: int) -> bytes:
        """`size` bytes from `position` on, fewer at the end of the file."""
        if position >= self.length:
            return b""
        if not self._start <= position <= position + size <= self._start + len(self._held):
            self._raw.seek(position)
            self._start, self._held = position, self._raw.read(max(size, MEBIBYTE))
        return self._held[position - self._start : position - self._start + size]

    def number(self, position: int, form: str) -> int:
        """The number at `position` in a format of `struct`; 0 beyond the end of the file."""
        content = self.at(position, struct.calcsize(form))
        return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else 0

    def find(self, pattern: bytes, position: int) -> int:
        """Where `pattern` first occurs from `position` on; -1 if it does not."""
        for start in range(position, self.length, SEARCHED_BYTES):
            if (offset := self.at(start, SEARCHED_BYTES + len(pattern) - 1).find(pattern)) >= 0:
                return start + offset
        return -1
