"""Integer division rounded up, and human-readable sizes."""

import numpy as np


def ceil_div(a, b):
    """a / b rounded up, for integers or integer arrays."""
    return -(-a // b)


def readable_bytes(count: float) -> str:
    """A number of bytes in human-readable form."""
    unit = min(int(np.log2(max(count, 1)) // 10), 4)
    return f"{count / 1024**unit:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
