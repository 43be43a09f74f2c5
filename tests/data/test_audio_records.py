"""Recordings as a feature: the same samples in records and batches, as many frames as labels, damage is named."""


import numpy as np
import pytest
import soundfile
from recordings import FRAMES, write_recording, write_recordings
from sedjax.data_prep import check as checker
from sedjax.data_prep import records as build_records
from tiny import change_npz, run_command, tiny_config

from sedjax.audio import reader
from sedjax.audio.clips import recut
from sedjax.core import parallel
from sedjax.core.errors import UserError
from sedjax.data import resident
from sedjax.data.batches import read_batch
from sedjax.data.layout import read_layout
from sedjax.data.plan import cut
from sedjax.data.records import Records, directory_clips, open_records
from sedjax.models import registry
from sedjax.models.variables import example_inputs

BAD = "b.wav"
DATA = tiny_config().data


def samples_of(layout, filename: str) -> np.ndarray:
    return soundfile.read(layout.audio_path(filename), dtype="float32")[0]


@pytest.fixture
def layout(tmp_path):
    return write_recordings(tmp_path / "source", splits=True)


def build(layout, output, keys=("audio",), **kwargs) -> Records:
    build_records.build(layout.path, output, keys, **kwargs)
    return open_records(str(output), "train")


def test_batches_hold_the_samples_of_the_files(layout, tmp_path):
    train = build(layout, tmp_path / "records", ("mfcc", "audio"))
    assert train.features["audio"]["width"] == 1920
    assert "mean" not in train.features["audio"], "a column of samples has no statistics"
    assert set(train.features["mfcc"]) > {"mean", "std"}
    clips = cut(train.lengths, DATA, train.task)
    batch = read_batch(train, clips, np.array([1, -1, 2, 0]), ("mfcc", "audio"), DATA)
    found = batch["features"]["audio"]
    assert (found.shape, found.dtype) == ((4, 40, 1920), np.int16)
    for row, filename in ((0, "b.wav"), (2, "c.flac"), (3, "a.wav")):
        expected = samples_of(layout, filename)
        assert batch["frame_mask"][row].sum() == FRAMES[filename] == -(-len(expected) // 1920)
        flat = found[row].ravel()
        np.testing.assert_allclose(flat[: len(expected)] / 32768, expected, atol=1 / 32768)
        assert not flat[len(expected) :].any()
    assert not found[1].any()


def test_what_exceeds_full_scale_is_clipped():
    found = reader.frames(np.array([-1.5, -1.0, -0.5, 0.0, 1.0, 2.0, 0.4 / 32768, 0.6 / 32768], np.float32), 16000)
    np.testing.assert_array_equal(found[0, :9], [-32768, -32768, -16384, 0, 32767, 32767, 0, 1, 0])


def test_every_16_bit_sample_is_kept(tmp_path):
    samples = np.pad(np.arange(-32768, 32768, dtype=np.int16), (0, 1664))
    soundfile.write(tmp_path / "all.wav", samples, 16000)
    np.testing.assert_array_equal(reader.frames(tmp_path / "all.wav").ravel(), samples)
    np.testing.assert_array_equal(samples / np.float32(reader.FULL_SCALE), reader.read(tmp_path / "all.wav"))


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 160_000, 200_001])
def test_frames_cover_the_samples(samples):
    x = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
    found = reader.frames(x, 16000)
    assert found.shape == (-(-samples // 1920), 1920)
    assert reader.num_frames(x, 16000) == len(found)
    np.testing.assert_allclose(found.ravel()[:samples] / 32768, x, atol=1.1 / 32768)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_frame_more_is_cut_off_and_a_frame_less_is_silence(more, layout):
    frames = FRAMES[BAD]
    write_recording(layout, BAD, (frames + more) * 1920)
    own = reader.frames(layout.audio_path(BAD))
    for keys in (("audio",), ("mfcc", "audio"), ("audio", "mfcc")):
        found = layout.features(BAD, keys)
        assert tuple(found) == keys
        assert len(found["audio"]) == frames
        np.testing.assert_array_equal(found["audio"][: min(frames, len(own))], own[:frames])
        assert found["audio"][-1].any() == (more > 0)
    assert list(checker.survey(layout, ("audio",)).good) == list(layout.filenames)


def test_the_length_is_that_of_the_labels_or_of_the_recording(layout):
    path = layout.features_path(BAD)
    change_npz(path, embeddings=np.zeros((5, 16)))
    path.write_bytes(path.read_bytes()[:-500])
    assert len(layout.features(BAD, ("audio",))["audio"]) == layout.num_frames(BAD, ("audio",)) == FRAMES[BAD]
    path.unlink()
    assert layout.num_frames(BAD) == FRAMES[BAD]
    write_recording(layout, BAD, 4000)
    with pytest.raises(UserError, match=r"b\.wav has 3 frames, but the features or labels .* have 31"):
        layout.features(BAD, ("audio",))
    layout.labels_path(BAD).unlink()
    assert len(layout.features(BAD, ("audio",))["audio"]) == layout.num_frames(BAD, ("audio",)) == 3
    layout.audio_path(BAD).unlink()
    with pytest.raises(UserError, match="neither features nor labels nor audio of 'b.wav'"):
        layout.num_frames(BAD)


SPOIL = {
    "missing": (lambda path: path.unlink(), r"There is no file .*audio/b\.wav"),
    "empty": (lambda path: path.write_bytes(b""), r"audio/b\.wav is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5000]), r"audio/b\.wav is truncated"),
    "no audio": (lambda path: path.write_bytes(b"text" * 500), r"audio/b\.wav is damaged or not supported"),
    "two frames longer": (lambda path: soundfile.write(path, np.ones(33 * 1920), 16000), r"b\.wav has 33 frames, but"),
}


@pytest.mark.parametrize("case", SPOIL)
def test_a_bad_recording_stops_the_records_or_is_left_out(case, layout, tmp_path, caplog, capsys):
    spoil, message = SPOIL[case]
    spoil(layout.audio_path(BAD))
    with pytest.raises(UserError, match=rf"1 of 6 recordings .*{message}"):
        build(layout, tmp_path / "records")
    assert not (tmp_path / "records").exists()
    with pytest.raises(UserError, match="^1 problem in"):
        run_command(checker, layout.path, "--features=audio")
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{BAD}: ")
    caplog.clear()
    assert build(layout, tmp_path / "records", skip_bad=True).filenames == ("a.wav", "c.flac", "d.wav")
    assert [record.message.split(":")[0] for record in caplog.records if record.name == "data_prep"] == ["Skipped"]


def test_a_directory_of_audio_and_labels_only(layout, tmp_path, capsys):
    for path in (layout.path / "audio_features").iterdir():
        path.unlink()
    run_command(checker, layout.path)
    assert "6 of 6 recordings are good" in (out := capsys.readouterr().out)
    assert "features: audio 1920\n" in out
    with pytest.raises(UserError, match=r"metadata\.csv has a readable features file"):
        build(layout, tmp_path / "records", ("mfcc", "audio"))
    for filename in layout.filenames:
        layout.audio_path(filename).unlink()
    with pytest.raises(UserError, match=r"source/audio: .*metadata\.csv\.$"):
        build(layout, tmp_path / "records")


@pytest.mark.parametrize(("mode", "devices"), [("jit", 8), ("pmap", 8)])
def test_device_memory_holds_and_picks_16_bits(mode, devices, layout, tmp_path):
    train = build(layout, tmp_path / "records")
    clips = cut(train.lengths, DATA, train.task)
    mesh = parallel.make_mesh(devices)
    held = resident.load(train, clips, ("audio",), DATA, mesh, mode)
    assert held["features"]["audio"].dtype == np.int16
    ids = np.array([2, -1, 0, 3, -1, 1, -1, -1])
    lengths = resident.bucket_lengths(clips, DATA)[-1:]
    step = resident.with_gather(lambda state, batch: batch["features"]["audio"], lengths, mesh)
    found = parallel.compile_step(step, mesh, mode=mode, by_row=True)({}, held, ids.astype(np.int32), np.int32(0))
    expected = read_batch(train, clips, ids, ("audio",), DATA)["features"]["audio"]
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, expected)


def test_a_model_starts_from_16_bits():
    class Waveform(registry.MODELS["naive"]):
        inputs = ("audio", "mfcc")

    inputs, _ = example_inputs(Waveform(num_classes=3), {"audio": 1920, "mfcc": 32})
    assert {key: (value.shape, str(value.dtype)) for key, value in inputs.items()} == {
        "audio": ((1, 10, 1920), "int16"), "mfcc": ((1, 10, 32), "float32")}


def test_a_long_recording_of_a_directory_is_decoded_once_for_all_its_clips(tmp_path, monkeypatch):
    write_recordings(tmp_path, {"short.wav": 10, "long.wav": 400}, labels=False)
    for path in (tmp_path / "audio_features").iterdir():
        path.unlink()
    decoded, frames = [], reader.frames
    monkeypatch.setattr(reader, "frames", lambda path: decoded.append(path.name) or frames(path))
    clips = list(recut(directory_clips(read_layout(tmp_path), ("audio",), {"audio": 1920}), 40))
    assert [len(clip) for clip in clips] == [10, *[40] * 10]
    assert decoded == ["short.wav", "long.wav"]
