"""Whatever a recording is stored in: it is read whole, or short by no more than 120 ms with a warning, or refused."""

import io
import itertools
import re

import numpy as np
import pytest
import soundfile

from sedjax.audio import flac, mp3, ogg, reader
from sedjax.core.errors import UserError

SAMPLES = 8077
UNSTATED = {"IRCAM", "PAF", "PVF", "SD2", "XI"}  # their headers do not say how long they are
FORMATS = sorted(set(soundfile.available_formats()) - {"RAW", "MP3", "OGG", "FLAC"})
# Where a header says how long it is: after these bytes, so many further on, so many bytes of it.
LENGTH = {"WAV": (b"data", 0, 4), "WAVEX": (b"data", 0, 4), "RF64": (b"ds64", 12, 8), "W64": (b"data", 12, 8),
          "AIFF": (b"SSND", 0, 4), "SVX": (b"BODY", 0, 4), "CAF": (b"data", 0, 8), "AU": (b".snd", 4, 4),
          "VOC": (b"\x1f\x11", 1, 3), "NIST": (b"sample_count -i ", 0, 4), "AVR": (b"2BIT", 22, 4),
          "MPC2K": (b"\x01\x04", 28, 4), "MAT4": (b"wavedata", -12, 4), "HTK": (b"", 0, 4), "SDS": (b"\xf0\x7e", 9, 2)}


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((samples, channels))


def read(path, content: bytes, caplog) -> tuple[int | None, str]:
    """Samples of a recording with this content and the warning, or why it is refused."""
    path.write_bytes(content)
    reader._warn.cache_clear()
    caplog.clear()
    try:
        samples = len(reader.read(path))
    except UserError as error:
        return None, str(error)
    assert len(caplog.records) <= 1
    return samples, caplog.records[0].getMessage() if caplog.records else ""


def damages(content: bytes, kind: str, with_header: bool):
    """Content with its end cut off, a hole in it, or another length in its header."""
    for cut in (1, 2, 4, 300, len(content) // 10, len(content) // 2, len(content) - 150, len(content) - 20):
        yield f"cut by {cut}", content[:-cut]
    middle = len(content) // 2
    yield "hole", content[:middle] + content[middle + len(content) // 8 :]
    if with_header and kind in LENGTH:
        after, offset, size = LENGTH[kind]
        start = content.index(after) + len(after) + offset
        for position, bits in itertools.product(range(start, start + size), (0x01, 0x94)):
            changed = bytearray(content)
            changed[position] ^= bits
            yield f"byte {position} xor {bits}", bytes(changed)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_container(kind, tmp_path, caplog):
    written = 0
    for subtype, channels in itertools.product(soundfile.available_subtypes(kind), (1, 2)):
        path = tmp_path / f"{subtype}.{'sd2' if kind == 'SD2' else 'bin'}"
        try:
            soundfile.write(path, noise(SAMPLES, channels), 16000, format=kind, subtype=subtype)
        except soundfile.LibsndfileError:  # not with so many channels
            continue
        written += 1
        content, info = path.read_bytes(), soundfile.info(path)
        whole, warning = read(path, content, caplog)
        assert info.frames >= SAMPLES
        assert whole == round(info.frames * 16000 / info.samplerate)
        assert ("does not say how long" in warning) == (kind in UNSTATED)
        for what, damaged in damages(content, kind, subtype == "PCM_16") if channels == 1 or written < 3 else ():
            found, message = read(path, damaged, caplog)
            if found is None:
                continue
            if kind in UNSTATED:
                assert "does not say how long" in message
            elif found < min(whole, SAMPLES * 16000 // info.samplerate) - (kind == "SDS"):
                assert whole - found <= 1920, (subtype, channels, what, found)
                assert re.search(r"\d\.\d+ s are missing", message), (subtype, channels, what, found, message)
    assert written


@pytest.mark.parametrize(("kind", "sizes"), [
    ("WAV", (0xFFFFFFFF, 0x7FFFF000, 0x80000000)), ("AIFF", (0, 0x7FFFFFFF)), ("AU", (0xFFFFFFFF,))])
def test_a_length_that_is_a_place_holder(kind, sizes, tmp_path, caplog):
    soundfile.write(tmp_path / "a.bin", noise(SAMPLES), 16000, format=kind, subtype="PCM_16")
    content = bytearray((tmp_path / "a.bin").read_bytes())
    after, offset, size = LENGTH[kind]
    start = content.index(after) + len(after) + offset
    for number in sizes:
        content[start : start + size] = number.to_bytes(size, "little" if kind == "WAV" else "big")
        samples, warning = read(tmp_path / "a.bin", content, caplog)
        assert samples >= SAMPLES
        assert "does not say how long" in warning


@pytest.mark.parametrize("after", [b"LIST\x08\0\0\0INFOabcd", b"id3 \xff\0\0\0cut", b"ID3\x03" + bytes(20) + b"x" * 99,
                                   bytes(4000)])
def test_what_follows_the_sound_is_no_sound(after, tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", noise(SAMPLES), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    if b"cut" in after:
        content[4:8] = (len(content) + 255).to_bytes(4, "little")
    assert read(tmp_path / "a.wav", bytes(content) + after, caplog) == (SAMPLES, "")


def test_sound_that_the_header_leaves_out(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", noise(SAMPLES), 16000)
    content = (tmp_path / "a.wav").read_bytes()
    assert read(tmp_path / "a.wav", content + bytes(range(256)) * 20, caplog)[0] is None
    assert "are missing" in read(tmp_path / "a.wav", content + b"\xfe\xff" * 20, caplog)[1]


# FLAC


def with_total(content: bytes, total: int) -> bytes:
    packed = int.from_bytes(content[18:26], "big") >> 36 << 36 | total
    return content[:18] + packed.to_bytes(8, "big") + content[26:]


def test_flac(tmp_path, caplog):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(48077, 2), 48000)
    content, whole = path.read_bytes(), round(48077 / 3)
    assert flac.num_samples(io.BytesIO(content)) == 48077
    assert read(path, content, caplog) == (whole, "")
    assert read(path, with_total(content, 0), caplog) == (whole, "")
    assert read(path, content + bytes(999), caplog) == (whole, "")
    samples, warning = read(path, content[:-1], caplog)
    assert "are missing" in warning
    assert 0 < whole - samples <= 1920
    for damaged in (content[: len(content) // 2], with_total(content, 9000), content[:9000] + content[9999:],
                    content[:20000] + b"\x55" + content[20001:]):
        assert read(path, damaged, caplog)[0] is None


# Ogg


def page_starts(content: bytes) -> list[int]:
    return [match.start() for match in re.finditer(b"OggS", content)]


def unmarked(content: bytes, end: int | None) -> bytes:
    """Without the end of the stream, and with another number of samples up to there, if given."""
    start = page_starts(content)[-1]
    page = bytearray(content[start:])
    page[5] &= ~ogg.LAST
    if end:
        page[6:14] = end.to_bytes(8, "little")
    page[22:26] = bytes(4)
    page[22:26] = ogg._checksum(bytes(page)).to_bytes(4, "little")
    return content[:start] + page


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("channels", [1, 2])
def test_ogg(subtype, channels, tmp_path, caplog):
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(5 * 16000, channels), 16000, format="OGG", subtype=subtype)
    content = path.read_bytes()
    assert read(path, content, caplog) == (5 * 16000, "")
    starts = page_starts(content)
    samples, warning = read(path, unmarked(content, 240480 if subtype == "OPUS" else None), caplog)
    assert 5 * 16000 <= samples < 5 * 16000 + 320  # packets of 20 ms
    assert "end of stream" in warning
    samples, warning = read(path, content[: starts[-1]], caplog)
    assert samples < 5 * 16000
    assert "end of stream" in warning
    assert read(path, content[: starts[3]] + b"junk" + content[starts[3] :] + bytes(9), caplog) == (5 * 16000, "")
    middle = len(content) // 2
    for damaged in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], content + content,
                    content[: starts[3]] + content[starts[4] :], content[:middle] + content[middle + 2000 :],
                    content[:middle], content[: starts[-2] + 20], content[: starts[-2] + 300]):
        assert read(path, damaged, caplog)[0] is None


@pytest.mark.parametrize("cut", [1, 50])
def test_ogg_whose_last_page_is_short(cut, tmp_path, caplog):
    path = tmp_path / "a.opus"
    soundfile.write(path, noise(17000), 16000, format="OGG", subtype="OPUS")
    samples, warning = read(path, path.read_bytes()[:-cut], caplog)
    assert 0 < 17000 - samples <= 1920
    assert f"at least {(17000 - samples) / 16000:.4f} s are missing" in warning


# MPEG


def encoded(path, samples: int = 30000, **mode) -> bytes:
    soundfile.write(path, noise(samples), 16000, format="MP3", **mode)
    return path.read_bytes()


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_that_says_its_length(mode, tmp_path, caplog, capfd):
    path = tmp_path / "a.mp3"
    content = encoded(path, bitrate_mode=mode, compression_level=0.5)
    assert read(path, content, caplog) == (30000, "")
    frames = mp3.scan(io.BytesIO(content))
    assert frames.stated == frames.whole - 1
    for cut in (1, 3, 60):
        samples, warning = read(path, content[:-cut], caplog)
        assert 0 < 30000 - samples <= 1920
        assert "are missing" in warning
        assert "at least" not in warning
    size = mp3._frame_bytes(content[:4])
    frame = mp3._frame_bytes(content[size : size + 4])
    for damaged in (content[: len(content) // 2], content[:3000] + content[6000:], content[:2000] + bytes(3000) +
                    content[5000:], content[:size] + b"\x00\x01" * 3000 + content[size:] + bytes(9)):
        samples, _ = read(path, damaged, caplog)
        assert samples in (None, 30000)
    one_less = content[: size + frame] + b"\x7f" + content[size + frame + 1 :]  # the header of the second frame
    samples, warning = read(path, one_less, caplog)
    assert 30000 - 1920 <= samples < 30000
    assert "are missing" in warning
    samples, _ = read(path, content + b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + content, caplog)
    assert samples >= 60000, "two files in a row"
    assert capfd.readouterr().err == ""


def test_what_the_decoder_writes_to_the_screen_is_kept_off_it(capfd, tmp_path):
    import os

    with mp3.quiet():
        os.write(2, b"[src/libmpg123/layer3.c] error\nNote: Illegal Audio-MPEG-Header\nof another thread\n")
    assert capfd.readouterr().err == "of another thread\n"
    for content in (bytes(5000) + encoded(tmp_path / "b.mp3")[200:], b"text " * 1000):
        (tmp_path / "a.mp3").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.mp3 is"):
            reader.read(tmp_path / "a.mp3")
    assert capfd.readouterr().err == ""
