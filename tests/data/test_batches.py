"""Batches: every clip counts once, order is a function of (seed, epoch), a process reads its own share only."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_TASK, tiny_config

from sedjax.core.errors import UserError
from sedjax.data.batches import read_batch, stream
from sedjax.data.layout import read_layout, read_splits
from sedjax.data.plan import ClipTable, cut, in_length_order, order, training_clips, training_plan
from sedjax.data.records import open_records

DATA = tiny_config(data__bucket_frames=20).data  # clips of at most 40 frames, padded to a multiple of 20


def clips_of(lengths: list[int]) -> ClipTable:
    return cut(np.array(lengths), DATA, TINY_TASK)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_clips_cover_every_frame_once_on_the_segment_grid(lengths):
    clips = clips_of(lengths)
    covered = [np.zeros(length, int) for length in lengths]
    for recording, start, frames in zip(clips.recording, clips.start, clips.frames):
        assert start % TINY_TASK.frames_per_segment == 0
        assert 0 < frames <= DATA.max_frames
        covered[recording][start : start + frames] += 1
    assert all((frames == 1).all() for frames in covered)
    assert (np.diff(clips.recording) >= 0).all()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=40), batch=st.integers(1, 9),
       pool=st.integers(1, 5), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_has_every_clip_once_and_depends_on_nothing_else(lengths, batch, pool, seed, epoch):
    clips = clips_of(lengths)
    ids = order(clips, batch, pool, seed, epoch)
    assert ids.shape == (-(-len(clips) // batch), batch)
    assert sorted(ids[ids >= 0]) == list(range(len(clips)))
    np.testing.assert_array_equal(ids, order(clips, batch, pool, seed, epoch))
    evaluation = in_length_order(clips, batch)
    assert sorted(evaluation[evaluation >= 0]) == list(range(len(clips)))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=10), size=st.sampled_from([10, 20, 40]),
       seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_crops_are_inside_on_the_grid_and_as_many_as_cover_the_recording(lengths, size, seed, epoch):
    lengths = np.array(lengths)
    data = tiny_config(data__crop_frames=size).data
    crops = training_clips(lengths, data, TINY_TASK, seed, epoch)
    np.testing.assert_array_equal(np.bincount(crops.recording), -(-lengths // size))
    length = lengths[crops.recording]
    assert (crops.start % TINY_TASK.frames_per_segment == 0).all()
    assert (crops.start >= 0).all()
    np.testing.assert_array_equal(crops.frames, np.minimum(size, length - crops.start))
    assert (crops.frames > np.minimum(size, length) - TINY_TASK.frames_per_segment).all()
    again = training_clips(lengths, data, TINY_TASK, seed, epoch)
    for name in ("recording", "start", "frames"):
        np.testing.assert_array_equal(getattr(crops, name), getattr(again, name))
        assert getattr(crops, name).dtype == getattr(clips_of([1]), name).dtype


def test_crops_differ_between_epochs_and_seeds_and_reach_every_frame_alike():
    data = tiny_config(data__crop_frames=20).data
    lengths = np.array([107, 107, 15])
    starts, seen = set(), np.zeros(107, int)
    for seed in range(2):
        for epoch in range(300):
            crops = training_clips(lengths, data, TINY_TASK, seed, epoch)
            starts.add(tuple(crops.start))
            assert crops.start[-1] == 0
            for start, frames in zip(crops.start[:6], crops.frames[:6]):
                seen[start : start + frames] += 1
            assert (np.diff(crops.start[:6]) >= 0).all()  # spread over the recording
    assert len(starts) > 550
    # 6 crops of 10 places in each of 600 epochs: two places show a frame, but one those of the first and last segment.
    np.testing.assert_allclose(seen[10:100] / 600, 2 * 6 / 10, rtol=0.1)
    np.testing.assert_allclose(seen[[0, 9, 100, 106]] / 600, 6 / 10, rtol=0.15)


def test_without_crops_an_epoch_has_the_clips_of_evaluation(records):
    train = open_records(str(records), "train")
    whole = cut(train.lengths, DATA, train.task)
    for epoch in (0, 3):
        clips, ids = training_plan(train, DATA, 7).epoch(epoch)
        np.testing.assert_array_equal(clips.start, whole.start)
        np.testing.assert_array_equal(ids, order(whole, 8, DATA.pool_batches, 7, epoch))


def test_a_batch_of_crops_holds_what_they_say(source, records):
    train = open_records(str(records), "train")
    data = tiny_config(data__crop_frames=10, data__bucket_frames=10).data
    clips, ids = training_plan(train, data, 0).epoch(1)
    assert (clips.start > 0).any()
    batch = read_batch(train, clips, ids[0], ("embeddings",), data)
    for row, clip in enumerate(ids[0]):
        start, frames = clips.start[clip], clips.frames[clip]
        features = train.read(int(clips.recording[clip]), ("embeddings",))[0]["embeddings"]
        np.testing.assert_array_equal(batch["features"]["embeddings"][row, :frames], features[start : start + frames])
        assert batch["frame_mask"][row].sum() == frames


def test_epochs_and_seeds_differ_and_pools_save_padding():
    clips = clips_of(np.random.default_rng(0).integers(10, 41, 100).tolist())
    orders = [order(clips, 8, 4, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(ids) for ids in orders}) == 4

    def padded(pool: int) -> int:
        return sum(max(clips.frames[i] for i in row if i >= 0) for row in order(clips, 8, pool, 0, 0))

    assert padded(4) < 0.85 * padded(1)


@pytest.mark.parametrize("key", ["max_frames", "crop_frames", "bucket_frames"])
def test_lengths_off_the_segment_grid(key):
    config = tiny_config(**{f"data__{key}": 25}).data
    with pytest.raises(UserError, match=f"data.{key} = 25 is not a multiple"):
        cut(np.array([30]), config, TINY_TASK)


def test_batches_hold_the_recordings(source, records):
    layout = read_layout(source)
    train = open_records(str(records), "train")
    names = read_splits(layout)["train"]
    assert train.filenames == names
    clips = cut(train.lengths, DATA, train.task)
    ids = np.array([3, -1, 0, 5])
    batch = read_batch(train, clips, ids, ("embeddings",), DATA)
    assert batch["votes"].shape[1] in (20, 40)
    np.testing.assert_array_equal(batch["clip_id"], ids)
    for row, clip in enumerate(ids):
        frames = int(batch["frame_mask"][row].sum())
        if clip < 0:
            assert frames == 0
            continue
        features = layout.features(names[clip], ("embeddings",))["embeddings"]
        assert frames == len(features)
        np.testing.assert_array_equal(batch["features"]["embeddings"][row, :frames], features)
        np.testing.assert_array_equal(batch["votes"][row, :frames], layout.votes(names[clip]))
        assert not batch["features"]["embeddings"][row, frames:].any()


def test_a_process_reads_its_own_rows_only(records):
    train = open_records(str(records), "train")
    clips = cut(train.lengths, DATA, train.task)
    ids = np.array([0, 1, 2, -1])
    whole = read_batch(train, clips, ids, ("embeddings",), DATA)
    read = []

    class Watched:
        task, lengths = train.task, train.lengths

        def read(self, index, keys):
            read.append(index)
            return train.read(index, keys)

    for rows, expected in ((slice(0, 2), [0, 1]), (slice(2, 4), [2])):
        read.clear()
        part = read_batch(Watched(), clips, ids, ("embeddings",), DATA, rows)
        assert read == expected
        np.testing.assert_array_equal(part["features"]["embeddings"], whole["features"]["embeddings"][rows])


def test_a_share_of_padding_has_the_shapes_of_the_others(records):
    train = open_records(str(records), "train")
    clips = cut(train.lengths, DATA, train.task)
    batch = read_batch(train, clips, np.array([0, 1, -1, -1]), ("embeddings",), DATA, slice(2, 4))
    assert batch["features"]["embeddings"].shape == (2, *batch["votes"].shape[1:2], 16)
    assert not batch["frame_mask"].any()


def test_the_stream_is_in_order_and_starts_anywhere():
    def read(number):
        votes = np.full((1, number, 2), number, np.float16)
        return {"features": {}, "votes": votes, "frame_mask": votes[..., 0] > 0, "clip_id": np.array([number])}

    for number, batch in zip(range(5, 40), stream(read, read(0), 5, 40), strict=True):
        expected = read(number)
        assert batch.keys() == expected.keys()
        for name in ("votes", "frame_mask", "clip_id"):
            assert batch[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(batch[name], expected[name])
    assert list(stream(read, read(0), 5, 5)) == []


def test_batches_pass_through_tensorflow_uncopied(records):
    train = open_records(str(records), "train")
    clips = cut(train.lengths, DATA, train.task)
    expected = read_batch(train, clips, np.array([0, 1, 2]), ("embeddings", "melspectrogram"), DATA)
    (batch,) = stream(lambda number: expected, expected, 0, 1)
    for key, features in expected["features"].items():
        assert np.shares_memory(batch["features"][key], features)
    assert np.shares_memory(batch["votes"], expected["votes"])


def test_the_stream_hands_on_errors():
    def read(number):
        raise UserError("record 3 is damaged")

    with pytest.raises(UserError, match="^record 3 is damaged$"):
        next(stream(read, {"clip_id": np.arange(1)}, 0, 5))


def test_records_are_read_by_tfds_alone(source, records):
    builder = tfds.builder_from_directory(records)
    example = builder.as_data_source("validation")[0]
    layout = read_layout(source)
    name = read_splits(layout)["validation"][0]
    assert example["filename"].decode() == name
    np.testing.assert_array_equal(example["features"]["melspectrogram"],
                                  layout.features(name, ("melspectrogram",))["melspectrogram"])
    assert example["votes"].dtype == np.float16
    assert list(json.loads(builder.info.metadata["task"])["costs"]) == list(TINY_TASK.classes)


def test_statistics_are_those_of_the_training_frames(source, records):
    layout = read_layout(source)
    train = read_splits(layout)["train"]
    found = open_records(str(records), "train")
    frames = np.concatenate([layout.features(name, ("melspectrogram",))["melspectrogram"] for name in train])
    np.testing.assert_allclose(found.features["melspectrogram"]["mean"], frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.features["melspectrogram"]["std"], frames.std(0), rtol=1e-4)
    level = 10 * np.log10(np.maximum(frames.astype(np.float64), 1e-10))
    np.testing.assert_allclose(found.features["melspectrogram"]["level_std"], level.std(0), rtol=1e-5)
    assert "level_mean" not in found.features["embeddings"]  # they are negative at times: no power
    active = np.concatenate([layout.votes(name) > 0 for name in train])
    np.testing.assert_allclose(found.labels["mean"], active.mean(0), rtol=1e-6)


@pytest.mark.parametrize(("path", "split", "words"), [
    ("", "train", "set data.path"), ("nowhere", "train", "no records in nowhere"), (None, "dev", "no split 'dev'"),
])
def test_records_that_are_not_there(records, path, split, words):
    with pytest.raises(UserError, match=words):
        open_records(str(records) if path is None else path, split)
