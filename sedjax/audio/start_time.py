"""When a recording began, from the names that field recorders give their files."""

import datetime
import pathlib
import re

from sedjax.core.errors import UserError, printable

# 20240131_053000.WAV (AudioMoth, from firmware 1.2), SITE_20240131_053000.wav (Song Meter), SITE_20240131$053000.wav,
# SITE_0+1_20240131_053000.wav, 2024-01-31_05-30-00.wav, REC_20240131T053000+0100.flac
_STAMP = re.compile(r"(?<!\d)(\d{4})-?(\d{2})-?(\d{2})[_$T -](\d{2})[:-]?(\d{2})[:-]?(\d{2})(?!\d)")
_AUDIOMOTH_SECONDS = re.compile(r"[0-9A-F]{8}")  # before firmware 1.2: seconds since 1970 in hexadecimal


def start_of(recording: str) -> datetime.datetime | None:
    """The time at which a recording began, on the recorder's own clock (without time zone); None if its name has none.

    Reads the names that AudioMoth and the Song Meters of Wildlife Acoustics write, and similar ones.
    """
    stem = pathlib.PurePath(recording).stem
    if match := _STAMP.search(stem):
        try:
            return datetime.datetime(*map(int, match.groups()))
        except ValueError:  # digits that are no date
            return None
    if _AUDIOMOTH_SECONDS.fullmatch(stem):
        epoch = datetime.datetime(1970, 1, 1)
        start = epoch + datetime.timedelta(seconds=int(stem, 16))
        return start if start.year >= 2017 else None  # the first AudioMoths were sold in 2017
    return None


def parse_start(text: str) -> datetime.datetime:
    """A time such as 2024-01-31T05:30:00 or "2024-01-31 05:30". Raises UserError for anything else."""
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError as error:
        raise UserError(f"--start={printable(text)} is not a date and time: write it like "
                        "2024-01-31T05:30:00.") from error
