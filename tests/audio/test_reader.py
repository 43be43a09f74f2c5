"""Any recording: the same samples whatever it is stored in, bounded memory, one sentence for what cannot be read."""

import dataclasses
import os
import re
import struct
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from sedjax.data_prep import extract
from sedjax.data_prep.check import survey
from tiny import TINY_TASK, write_layout

from sedjax.audio import mp3, reader
from sedjax.core.errors import UserError
from sedjax.inference import extractors
from sedjax.inference.detector import Detector
from sedjax.inference.trained import TrainedModel
from sedjax.scoring.event_rules import EventRules


def tone(seconds: float, rate_hz: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_a_tone_stays_the_tone_it_was(rate_hz):
    found = reader.read(tone(1.0, rate_hz), rate_hz)
    assert found.shape == (16000,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[800:-800], tone(1.0, 16000)[800:-800], atol=2e-4)


def test_what_16_khz_cannot_hold_is_gone():
    assert np.abs(reader.read(tone(1.0, 48000, hz=9000.0), 48000)[800:-800]).max() < 1e-4


@pytest.mark.parametrize("rate_hz", [8000, 16000, 32000, 44100, 48000])
@pytest.mark.parametrize("samples", [1, 2, 3, 5, 100, 4801])
def test_length(rate_hz, samples):
    found = reader.read(np.full(samples, 0.25, np.float32), rate_hz)
    assert len(found) == max(round(samples * 16000 / rate_hz), 1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("suffix", "subtype"), [
    ("wav", "PCM_16"), ("wav", "PCM_U8"), ("wav", "FLOAT"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("aiff", "PCM_16"),
    ("mp3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_is_the_array_that_it_holds(tmp_path, suffix, subtype, channels):
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.standard_normal((12 * 44100 + 7, channels))
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, samples, 44100, subtype=subtype)
    decoded, rate_hz = soundfile.read(path, dtype="float32")
    found = reader.read(path)
    np.testing.assert_allclose(found, reader.read(decoded, rate_hz), atol=1e-6)  # mp3 is decoded by blocks, and rounded
    assert abs(len(found) - 12 * 16000) < 2000  # lossy formats add their own padding


def test_integers_have_the_full_scale_of_their_type():
    x = np.array([-32768, -1, 0, 16384, 32767], np.int16)
    expected = x / np.float32(32768)
    np.testing.assert_array_equal(reader.read(x, 16000), expected)
    np.testing.assert_array_equal(reader.read(x.astype(np.int32) * 65536, 16000), expected)
    np.testing.assert_array_equal(reader.read(np.array([0, 128, 192], np.uint8), 16000), [-1, 0, 0.5])


def test_channels_are_averaged():
    x = np.random.default_rng(0).uniform(-1, 1, (1000, 3)).astype(np.float32)
    np.testing.assert_allclose(reader.read(x, 16000), x.mean(axis=1), atol=1e-7)


def test_blocks_are_bounded_and_make_up_the_whole(tmp_path, monkeypatch):
    samples = 0.1 * np.random.default_rng(0).standard_normal((25 * 44100, 2))
    soundfile.write(tmp_path / "a.wav", samples, 44100)
    whole = reader.read(tmp_path / "a.wav")
    assert [len(block) for block in reader.blocks(tmp_path / "a.wav")] == [160000, 160000, 80000]
    original, read = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kwargs: read.append(
        original(*args, **kwargs)) or read[-1])
    monkeypatch.setattr(reader, "CHUNK_VALUES", 5000)
    np.testing.assert_array_equal(np.concatenate(list(reader.blocks(tmp_path / "a.wav"))), whole)
    assert max(chunk.size for chunk in read) == 5000


def test_the_first_block_needs_no_more_than_the_first_block(tmp_path, monkeypatch):
    """So that a recording of any length fits into memory."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(600 * 16000, np.int16), 16000)
    original, read = soundfile.SoundFile.read, []

    def counted(*args, **kwargs):
        read.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert len(next(reader.blocks(path))) == 160000
    assert len(read) == 1


@pytest.mark.parametrize("samples", [160000, 160001, 320000])
def test_no_block_is_empty(samples):
    sizes = [len(block) for block in reader.blocks(np.zeros(samples, np.float32), 16000)]
    assert sum(sizes) == samples
    assert min(sizes) > 0
    assert max(sizes) == 160000


@pytest.mark.parametrize(("samples", "real"), [
    (1, [1]), (40, [40]), (41, [40, 11]), (69, [40, 39]), (70, [40, 40]), (71, [40, 40, 11]), (170, [40] * 5 + [20])])
@pytest.mark.parametrize("block", [7, 40, 1000])
def test_windows_cover_a_recording_and_no_window_more(samples, real, block):
    x = np.arange(1, samples + 1, dtype=np.float32)
    found = list(reader.windows((x[start : start + block] for start in range(0, samples, block)), size=40, hop=30))
    assert [count for _, count in found] == real
    for i, (window, count) in enumerate(found):
        np.testing.assert_array_equal(window, np.pad(x[30 * i :][:40], (0, 40 - count)))


def test_silence_and_clipping_are_kept():
    np.testing.assert_array_equal(reader.read(np.zeros(500, np.float32), 16000), np.zeros(500))
    np.testing.assert_array_equal(reader.read(np.array([1.5, -3.0], np.float32), 16000), [1.5, -3.0])


@pytest.mark.parametrize(("bad", "words"), [
    (np.nan, "holds NaN or infinity"), (np.inf, "holds NaN or infinity"),
    (3e4, "has samples up to 30,000,")])
@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_samples_that_are_no_sound(tmp_path, bad, words, rate_hz):
    samples = np.zeros((20 * rate_hz, 2), np.float32)
    samples[15 * rate_hz] = bad
    soundfile.write(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    with pytest.raises(UserError, match=rf"a\.wav {words}"):
        reader.read(tmp_path / "a.wav")
    with pytest.raises(UserError, match=rf"The array {words}"):
        reader.read(samples, rate_hz)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "w64", "caf"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_file(tmp_path, suffix, share):
    path = tmp_path / f"half.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(20 * 16000), 16000)
    whole = path.read_bytes()
    assert len(reader.read(path)) >= 20 * 16000
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=rf"half\.{suffix} is (truncated|damaged)"):
        reader.read(path)


def test_a_header_from_a_pipe_has_no_length(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(1.0, 16000), 16000)
    data = bytearray(path.read_bytes())
    for name in (b"RIFF", b"data"):
        data[data.index(name) + 4 : data.index(name) + 8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(reader.read(path)) == 16000


def mp3_frames(path, seconds: float, rate_hz: int, **mode) -> bytes:
    """An mp3 file without the header that says its length, as others write it."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate_hz))
    samples *= np.linspace(1, 0, len(samples)) ** 4  # so that a varying bit rate varies
    soundfile.write(path, samples, rate_hz, format="MP3", **mode)
    whole = path.read_bytes()
    return whole[mp3._frame_bytes(whole[:4]) :]


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_header_that_says_its_length(tmp_path, rate_hz, mode, caplog):
    """Every frame is read, with tags or not, or junk in between; of a frame that is cut the rest is missing."""
    path = tmp_path / "a.mp3"
    frames = mp3_frames(path, 5.0, rate_hz, bitrate_mode=mode, compression_level=0.5)
    whole = len(reader.read(path)) + round(3 * 1152 / rate_hz * 16000)  # without what the header says of its edges
    for before, after in ((b"", b""), (b"", b"TAG" + bytes(125)), (b"ID3\4\0\0\0\0\1\2" + bytes(130), b""),
                          (b"", bytes(1000)), (b"", b"APETAGEX" + bytes(100))):
        path.write_bytes(before + frames + after)
        assert 5 * 16000 <= len(reader.read(path)) < whole
    assert not caplog.records
    each, whole_seconds = mp3._samples(frames) * 16000 / rate_hz, len(reader.read(path)) / 16000
    for missing in (1, 50):
        path.write_bytes(frames[:-missing])
        assert abs(len(reader.read(path)) - (5 * 16000 + each)) < 2.5 * each
    assert caplog.records[0].getMessage().endswith(f"{each / 16000:.4f} s are missing out of {whole_seconds:.3f} s.")


@pytest.mark.parametrize(("name", "content"), [
    ("text.wav", b"no audio at all " * 100), ("text.flac", b"fLaC and then?"),
    ("text.raw", b"abc"), ("noise.mp3", np.random.default_rng(0).bytes(5000)), ("zeros.ogg", bytes(5000))])
def test_what_is_no_audio(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged or not supported"):
        reader.read(tmp_path / name)


def test_no_samples(tmp_path):
    (tmp_path / "empty.mp3").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.mp3 is empty"):
        reader.read(tmp_path / "empty.mp3")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 44100)
    with pytest.raises(UserError, match=r"none\.wav has no samples"):
        reader.read(tmp_path / "none.wav")
    with pytest.raises(UserError, match="The array has no samples"):
        reader.read(np.zeros((0, 2), np.float32), 16000)


@pytest.mark.parametrize("name", ["missing.wav", "folder.wav", "pipe.wav", "device.wav", "nul\0.wav", "n" * 300])
def test_what_is_not_a_regular_file(tmp_path, name):
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=re.escape(name.split("\0")[0])):
        reader.read(tmp_path / name)


def wav_header(channels: int = 1, rate_hz: int = 16000, data_bytes: int = 1 << 16) -> bytes:
    return (b"RIFF" + struct.pack("<I", 36 + data_bytes) + b"WAVEfmt " + struct.pack(
        "<IHHIIHH", 16, 1, channels, rate_hz, rate_hz * 2 * channels & 0xFFFFFFFF, 2 * channels & 0xFFFF, 16) +
        b"data" + struct.pack("<I", data_bytes))


@pytest.mark.parametrize("content", [
    wav_header(data_bytes=0x7FFE0000) + bytes(5000), wav_header(channels=1000, data_bytes=0x7FFE0000) + bytes(5000),
    wav_header(channels=65535) + bytes(5000), wav_header(rate_hz=1 << 31) + bytes(1 << 16),
    wav_header(channels=0) + bytes(5000), wav_header()[:30], b"RIFF", bytes(36)])
def test_a_header_that_promises_what_is_not_there(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.wav"):
        reader.read(path)


def test_zeros_text_and_names(tmp_path):
    with open(tmp_path / "zeros.wav", "wb") as file:
        file.truncate(10**8)
    (tmp_path / "text.mp3").write_text("no sound\n" * 10_000)
    for name in ("zeros.wav", "text.mp3"):
        with pytest.raises(UserError, match=f"{name} is damaged or not supported"):
            reader.read(tmp_path / name)
    soundfile.write(tmp_path / "a.wav", tone(1.0, 16000), 16000)
    name = os.fsencode(tmp_path) + b"/\xff\x1b[31m" + b"n" * 200 + b".wav"
    os.rename(tmp_path / "a.wav", name)
    assert len(reader.read(os.fsdecode(name))) == 16000
    os.truncate(name, 1000)
    with pytest.raises(UserError, match=r"\\x1b\[31mn+\.wav is truncated"):
        reader.read(os.fsdecode(name))


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_a_recording_that_changes_while_it_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(60 * 16000), 16000)
    blocks = reader.blocks(path)
    next(blocks)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"a\.{suffix} is (truncated|damaged)"):
        list(blocks)


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((2, 16000), np.float32), r"\(2, 16000\).*\(samples, channels\)"), (np.zeros((9000, 65)), "transpose"),
    (np.zeros((1, 2, 3)), "numbers of shape"), (np.float32(1), "numbers of shape"), (np.zeros(9, complex), "complex"),
    (np.zeros((9, 0)), "numbers of shape"), (np.zeros(9, bool), "bool"), (np.array(["a"]), "<U1"), (None, "object"),
    (np.array([1, None]), "object"), ([[1.0], [1.0, 2.0]], "list"), (b"RIFF", "bytes"), ({1: 2}, "dict"),
    ([], "has no samples"), (np.zeros((0, 2)), "has no samples"), ([0.0, np.nan], "NaN"), ([1e300], "infinity")])
def test_an_array_that_is_no_recording(array, words):
    with pytest.raises(UserError, match=words):
        reader.read(array, 16000)


@pytest.mark.parametrize("array", [jnp.zeros(160), [0.0] * 160, memoryview(np.zeros(160)), range(-80, 80),
                                   np.zeros((160, 2), np.float16), np.ma.zeros(160)])
def test_what_numpy_makes_an_array_of(array):
    assert len(reader.read(array, 16000)) == 160


@pytest.mark.parametrize(("rate_hz", "words"), [
    (None, "sample_rate_hz"), (0, "sample rate of 0 Hz"), (10**7, "10,000,000 Hz"), (-16000, "-16,000 Hz"),
    (16000.5, "whole number"), (np.nan, "whole number"), (np.inf, "whole number"), (True, "whole number"),
    ("16000", "whole number"), ([16000], "whole number"), (np.float32(0.5), "whole number"), (10**400, "Hz")])
def test_a_sample_rate_that_is_none(rate_hz, words):
    with pytest.raises(UserError, match=words):
        list(reader._array_chunks(np.zeros(160, np.float32), rate_hz))


@pytest.mark.parametrize("rate_hz", [16000, 16000.0, np.int32(16000), np.float64(16000), np.array(16000)])
def test_a_sample_rate(rate_hz):
    assert len(np.concatenate(list(reader._array_chunks(np.zeros(160, np.float32), rate_hz)))) == 160


def test_frames_of_another_length(tmp_path):
    """They are refused wherever a recording would be made into frames of 120 ms."""
    task = dataclasses.replace(TINY_TASK, frame_seconds=0.04)
    layout = dataclasses.replace(write_layout(tmp_path), task=task)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / layout.filenames[0], tone(1.0, 16000), 16000)
    (tmp_path / "costs.json").write_text(task.to_json())
    model = mock.Mock(spec=TrainedModel, task=task, inputs=("audio",))
    rules = EventRules(np.full(3, 0.5))
    for attempt in (lambda: layout.features(layout.filenames[0], ("audio",)), lambda: survey(layout, ("audio",)),
                    lambda: extract.extract(tmp_path / "audio", tmp_path, ("mfcc",)),
                    lambda: Detector(model, rules).detect([]), lambda: extractors.load_extractor("w", 9.6, 0)):
        with mock.patch.object(extractors, "load_model", return_value=model), pytest.raises(
                UserError, match=r"'tiny' has frames of 0\.04 s"):
            attempt()
