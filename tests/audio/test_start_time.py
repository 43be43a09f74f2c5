import datetime

import pytest

from sedjax.audio.start_time import parse_start, start_of
from sedjax.core.errors import UserError

DAWN = datetime.datetime(2024, 1, 31, 5, 30)


@pytest.mark.parametrize("name", ["20240131_053000.WAV", "SITE_20240131_053000.wav", "S4A01234_20240131$053000.wav",
                                  "SMU_0+1_20240131_053000.wav", "2024-01-31_05-30-00.flac", "65B9DAD8.WAV",
                                  "folder/REC_20240131T053000+0100.ogg"])
def test_names_of_recorders(name):
    assert start_of(name) == DAWN


@pytest.mark.parametrize("name", ["street.mp3", "20241331_053000.wav", "20240131_253000.wav", "00000042.wav",
                                  "DEADBEEF1.wav", "120240131_0530001.wav", "20240131.wav", ""])
def test_other_names_have_no_start(name):
    assert start_of(name) is None


def test_start_by_hand():
    assert parse_start("2024-01-31 05:30") == parse_start("2024-01-31T05:30:00") == DAWN
    with pytest.raises(UserError, match="--start=dawn"):
        parse_start("dawn")
