"""Numbers as people read and write them."""

import numpy as np


def ceil_div(a, b):
    """a / b rounded up, of integers or arrays of them."""
    return -(-a // b)


def readable_bytes(count: float) -> str:
    """A number of bytes as a person reads it."""
    unit = min(int(np.log2(max(count, 1)) // 10), 4)
    return f"{count / 1024**unit:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
