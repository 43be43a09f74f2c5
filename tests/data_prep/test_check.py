import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from sedjax.data_prep import check as checker
from sklearn.model_selection import train_test_split
from tiny import TINY_TASK, change_npz, run_command, write_csv, write_layout

from sedjax.core.errors import UserError
from sedjax.core.files import read_csv
from sedjax.core.npz import savez
from sedjax.core.task import MLPC_2025, Task
from sedjax.data.layout import read_layout, read_splits

ROOT = pathlib.Path(__file__).parents[2]
SOUNDSCAPES = ROOT.parent / "shared" / "data" / "urban-soundscapes"

BAD = "103.mp3"  # the recording that tests spoil


@pytest.fixture
def tiny(tmp_path):
    return write_layout(tmp_path / "data", splits=True)


# Reading.


def test_a_valid_directory_is_read_as_it_was_written(tiny):
    assert tiny.task == Task("data", TINY_TASK.classes, TINY_TASK.costs)
    assert tiny.filenames == tuple(f"{100 + i}.mp3" for i in range(10))
    for filename in tiny.filenames:
        features, votes = tiny.features(filename, ("melspectrogram", "embeddings")), tiny.votes(filename)
        assert features["embeddings"].shape == (len(votes), 16)
        assert features["embeddings"].dtype == votes.dtype == np.float16
        assert features["melspectrogram"].shape == (len(votes), 64)
        assert features["melspectrogram"].dtype == np.float32
        with np.load(tiny.labels_path(filename)) as labels:
            for i, name in enumerate(TINY_TASK.classes):
                np.testing.assert_array_equal(votes[:, i] > 0, labels[name].any(axis=1))
                np.testing.assert_allclose(votes[:, i], labels[name].mean(axis=1), atol=1e-3)


def test_the_task_is_mlpc_without_costs_json_and_can_be_given(tmp_path):
    write_layout(tmp_path, MLPC_2025, recordings=1)
    assert read_layout(tmp_path).task == MLPC_2025
    assert read_layout(tmp_path, TINY_TASK).task == TINY_TASK


def test_features_of_one_column_and_labels_of_one_annotator_may_be_flat(tiny):
    frames = len(tiny.votes(BAD))
    change_npz(tiny.features_path(BAD), flux=np.ones(frames))
    change_npz(tiny.labels_path(BAD), Bell=np.arange(frames) % 2 == 0)
    flux = tiny.features(BAD, ("flux",))["flux"]
    assert (flux.shape, flux.dtype) == ((frames, 1), np.float32)
    np.testing.assert_array_equal(tiny.votes(BAD)[:, 0], np.arange(frames) % 2 == 0)


def test_filenames_of_several_rows_count_once(tiny):
    write_csv(tiny.path / "metadata.csv", ["title", "filename"], [["x", "2.mp3"], ["y", "1.mp3"], ["z", "2.mp3"]])
    assert read_layout(tiny.path).filenames == ("2.mp3", "1.mp3")


@pytest.mark.parametrize(("content", "message"), [
    ("", r"metadata\.csv, line 1: the column 'filename' is missing"),
    ("name\n1.mp3\n", r"metadata\.csv, line 1: the column 'filename' is missing"),
    ("filename\n", "lists no recording"),
    ("filename\n../1.mp3\n", "not a plain file name"),
    ('filename\n""\n', "not a plain file name"),
    ("filename\n1.mp3\n1.wav\n", "'1.mp3' and '1.wav'"),
    ("filename,title\n1.mp3,a\n\n2.mp3\n", r"metadata\.csv, line 4: the number of columns"),
    ("filename\n1.mp3,2\n", r"metadata\.csv, line 2: the number of columns"),
    ("filename\n\xff.mp3\n", "line 2: not UTF-8"),
])
def test_unusable_metadata_is_named(content, message, tmp_path):
    (tmp_path / "metadata.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_layout(tmp_path)


def test_missing_directories_and_metadata_are_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no directory .*nowhere"):
        read_layout(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"There is no file .*metadata\.csv"):
        read_layout(tmp_path)


def test_the_split_without_splits_csv_is_that_of_the_report(tmp_path):
    write_csv(tmp_path / "metadata.csv", ["filename"], [[f"{i}.mp3"] for i in range(8230)])
    layout = read_layout(tmp_path)
    found = read_splits(layout)
    train, rest = train_test_split(list(layout.filenames), test_size=0.4, random_state=42, shuffle=True)
    validation, test = train_test_split(rest, test_size=0.5, random_state=42, shuffle=True)
    assert found == {"train": tuple(train), "validation": tuple(validation), "test": tuple(test)}
    assert [len(names) for names in found.values()] == [4938, 1646, 1646]
    assert read_splits(layout, split_seed=42) == found
    assert read_splits(layout, split_seed=1) != found


def test_splits_csv_goes_before_and_a_seed_before_that(tiny):
    assert read_splits(tiny) == {"train": tiny.filenames[:6], "validation": tiny.filenames[6:8],
                                 "test": tiny.filenames[8:]}
    assert read_splits(tiny, split_seed=42)["train"] != tiny.filenames[:6]


@pytest.mark.parametrize(("rows", "message"), [
    ([["100.mp3", "dev"]], r"splits\.csv, line 2: split 'dev'"),
    ([[], ["100.mp3", "train"], [], ["100.mp3", "dev"]], r"splits\.csv, line 5: split 'dev'"),
    ([["100.mp3", "train"], ["100.mp3", "test"]], r"splits\.csv, line 3: '100\.mp3' .* 'train'"),
    ([["100.mp3", "train"]], r"without a split: \['101\.mp3', "),
    ([[f"{100 + i}.mp3", "train"] for i in range(11)], r"not in metadata\.csv: \['110\.mp3'\]"),
])
def test_unusable_splits_are_named(rows, message, tiny, capsys):
    write_csv(tiny.path / "splits.csv", ["filename", "split"], rows)
    with pytest.raises(UserError, match=message):
        read_splits(tiny)
    with pytest.raises(UserError, match=r"^1 problem in .*data\.$"):
        run_command(checker, tiny.path)
    assert "splits.csv" in capsys.readouterr().out.splitlines()[0]


def test_too_few_recordings_to_split_are_an_error(tmp_path):
    with pytest.raises(UserError, match="too few recordings to split: 1"):
        read_splits(write_layout(tmp_path, recordings=1))


def test_csv_with_an_open_quote_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text('filename\n"1.mp3\n')
    with pytest.raises(UserError, match=r"a\.csv, line 2"):
        read_csv(tmp_path / "a.csv", ("filename",))


# Checking.


def test_a_valid_directory_has_no_problems(tiny, capsys):
    found = checker.survey(tiny)
    assert {filename: result.frames for filename, result in found.good.items()} == {
        filename: len(tiny.votes(filename)) for filename in tiny.filenames}
    assert found.contents.kinds == {"embeddings": (16, "float16"), "melspectrogram": (64, "float32"),
                                    "mfcc": (24, "float16")}
    assert found.contents.labelled
    assert problems_of(tiny) == []
    run_command(checker, tiny.path)
    out = capsys.readouterr().out
    assert out.startswith("10 of 10 recordings are good")
    frames = sum(result.frames for result in found.good.values())
    assert f"{frames} frames; features: embeddings 16, melspectrogram 64" in out


def with_nan(array):
    array = array.copy()
    array[5, 1] = np.nan
    return array


SPOIL = {
    "features missing": (lambda d: d.features_path(BAD).unlink(), r"There is no file .*audio_features/103\.npz"),
    "features empty": (lambda d: d.features_path(BAD).write_bytes(b""), r"103\.npz is damaged"),
    "features truncated": (lambda d: d.features_path(BAD).write_bytes(d.features_path(BAD).read_bytes()[:-500]),
                           r"103\.npz is damaged"),
    "features a single array": (lambda d: save_npy(d.features_path(BAD)),
                                r"103\.npz is damaged or not an npz"),
    "features with a flipped bit": (lambda d: flip(d.features_path(BAD)), r"103\.npz is damaged"),
    "features with a broken compression": (lambda d: break_compression(d.features_path(BAD)), r"103\.npz is damaged"),
    "features pickled": (lambda d: change_npz(d.features_path(BAD), embeddings=np.array([{}, 1], object)),
                         r"103\.npz is damaged or not an npz"),
    "feature absent": (lambda d: change_npz(d.features_path(BAD), embeddings=None), "'embeddings' is missing"),
    "feature without frames": (lambda d: change_npz(d.features_path(BAD), embeddings=np.zeros((0, 16), np.float16)),
                               r"'embeddings' must be numbers of shape .*\(0, 16\)"),
    "feature of three dimensions": (lambda d: change_npz(d.features_path(BAD), embeddings=np.zeros((20, 4, 4))),
                                    r"'embeddings' must be numbers of shape"),
    "feature of text": (lambda d: change_npz(d.features_path(BAD), embeddings=np.array([["a"]])),
                        "'embeddings' must be numbers of shape"),
    "feature with NaN": (lambda d: spoil_array(d, "embeddings", with_nan), "NaN or infinity, first in frame 5"),
    "feature too large": (lambda d: spoil_array(d, "embeddings", lambda x: np.full(x.shape, 1e300)),
                          "NaN or infinity, first in frame 0"),
    "features of two lengths": (lambda d: spoil_array(d, "embeddings", lambda x: x[:-1]),
                                "features differ in their number of frames"),
    "feature of another width": (lambda d: spoil_array(d, "embeddings", lambda x: x[:, :8]),
                                 "'embeddings' .*width 8 .*float16.*16 and float16"),
    "feature of another type": (lambda d: spoil_array(d, "embeddings", lambda x: x.astype(np.float32)),
                                "'embeddings' .*width 16 .*float32.*16 and float16"),
    "labels missing": (lambda d: d.labels_path(BAD).unlink(), r"There is no file .*labels/103_labels\.npz"),
    "labels empty": (lambda d: d.labels_path(BAD).write_bytes(b""), r"103_labels\.npz is damaged"),
    "class absent": (lambda d: change_npz(d.labels_path(BAD), Crow=None), "'Crow' is missing"),
    "labels beyond 1": (lambda d: change_npz(d.labels_path(BAD), Crow=np.full((20, 1), 2)), "'Crow' holds NaN or"),
    "labels that are NaN": (lambda d: change_npz(d.labels_path(BAD), Crow=np.full((20, 1), np.nan)), "holds NaN"),
    "labels that are complex": (lambda d: change_npz(d.labels_path(BAD), Crow=np.full((20, 1), 1j)), "complex128"),
    "complex features": (lambda d: change_npz(d.features_path(BAD), mfcc=np.full((20, 24), 1j)), "complex128"),
    "labels without annotators": (lambda d: change_npz(d.labels_path(BAD), Crow=np.zeros((20, 0))),
                                  r"'Crow' must be 0/1 of shape \(frames, annotators\)"),
    "classes of two lengths": (lambda d: change_npz(d.labels_path(BAD), Crow=np.zeros((3, 1))),
                               "classes differ in their number of frames"),
    "labels shorter than features": (
        lambda d: change_npz(d.labels_path(BAD), **{name: np.zeros((4, 1)) for name in d.task.classes}),
        r"103\.npz has \d+ frames and .*103_labels\.npz has 4\."),
}


def spoil_array(layout, key, change):
    change_npz(layout.features_path(BAD), **{key: change(layout.features(BAD, (key,))[key])})


def save_npy(path):
    with open(path, "wb") as file:
        np.save(file, np.ones(3))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def break_compression(path):
    """Compresses the file and spoils the first byte of an array, which zlib finds before any checksum is compared."""
    with np.load(path) as archive:
        np.savez_compressed(path, **archive)
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("embeddings.npy").header_offset
    content = bytearray(path.read_bytes())
    name, extra = (int.from_bytes(content[header + at:header + at + 2], "little") for at in (26, 28))
    content[header + 30 + name + extra] = 0xFF  # no such type of block
    path.write_bytes(content)


@pytest.mark.parametrize("case", SPOIL)
def test_each_damage_is_found_and_only_that(case, tiny, capsys):
    spoil, message = SPOIL[case]
    spoil(tiny)
    found = checker.survey(tiny)
    assert set(found.good) == set(tiny.filenames) - {BAD}
    assert found.contents.problems == []
    with pytest.raises(UserError, match=r"^1 problem in .*data\.$"):
        run_command(checker, tiny.path)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"{BAD}: ")
    assert re.search(message, line)


def problems_of(layout, keys=None):
    return checker.problems_of(layout, checker.survey(layout, keys), read_splits(layout))


def test_every_problem_has_its_line_and_a_recording_one_line(tiny):
    tiny.features_path("101.mp3").unlink()
    tiny.labels_path("101.mp3").write_bytes(b"")
    spoil_array(tiny, "melspectrogram", with_nan)
    first, second = problems_of(tiny)
    assert re.match(r"101\.mp3: There is no file .*101\.npz\. .*101_labels\.npz is damaged", first)
    assert re.match(r"103\.mp3: .*'melspectrogram' holds NaN", second)


def test_a_feature_that_is_not_asked_for_may_be_damaged(tiny, capsys):
    spoil_array(tiny, "melspectrogram", with_nan)
    assert problems_of(tiny, ("embeddings",)) == []
    run_command(checker, tiny.path, "--features=embeddings")
    assert "features: embeddings 16\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 problem"):
        run_command(checker, tiny.path, "--features=embeddings,melspectrogram")


def test_what_is_wrong_everywhere_is_said_once(tiny):
    change_npz(tiny.features_path(BAD), rare=np.ones((len(tiny.votes(BAD)), 2), np.float32))
    found = checker.survey(tiny, ("embeddings", "embedings", "rare"))
    assert found.contents.problems == [f"{tiny.path / 'audio_features'}: no file has the feature 'embedings'."]
    assert list(found.good) == [], "no recording is good"
    assert {filename for filename, result in found.recordings.items() if result.problems} == set(
        tiny.filenames) - {BAD}, "a feature of one recording is missing in the others"

    found = checker.survey(read_layout(tiny.path, MLPC_2025))
    assert len(found.contents.problems) == 10
    assert "no file has the class 'Speech' of the task 'MLPC 2025'" in found.contents.problems[0]
    assert found.good == {}
    assert not any(result.problems for result in found.recordings.values())


def test_other_costs_bring_other_classes(tiny, tmp_path, capsys):
    costs = {name: {"TP": 0, "FP": 1, "TN": 0, "FN": 5} for name in ("Drum", "Owl")}
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    with pytest.raises(UserError, match="1 problem"):
        run_command(checker, tiny.path, "--costs", tmp_path / "costs.json")
    assert "no file has the class 'Owl'" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no zip")])
def test_no_readable_features_at_all_is_one_problem(spoil, tiny):
    for filename in tiny.filenames:
        spoil(tiny.features_path(filename))
    found = checker.survey(tiny)
    assert found.contents.problems == [f"{tiny.path / 'audio_features'}: no recording in metadata.csv has a readable "
                                       "features file."]
    assert found.good == {}
    assert problems_of(tiny) == found.contents.problems


def test_a_directory_without_labels_is_fine(tmp_path, capsys):
    layout = write_layout(tmp_path, recordings=2, labels=False)
    found = checker.survey(layout)
    assert (found.contents.problems, found.contents.labelled) == ([], False)
    assert list(found.good) == list(layout.filenames)
    run_command(checker, tmp_path)
    assert "Note: " + str(tmp_path) + " has no labels" in capsys.readouterr().out


def test_silent_features_orphans_and_unheard_classes_are_notes(tiny, capsys):
    spoil_array(tiny, "embeddings", lambda x: 0 * x)
    (tiny.path / "labels" / "999_labels.npz").touch()
    (tiny.path / "audio_features" / ".DS_Store").touch()
    for filename in tiny.filenames[:6]:
        change_npz(tiny.labels_path(filename), Crow=np.zeros((len(tiny.votes(filename)), 2), np.uint8))
    run_command(checker, tiny.path)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 3
    assert re.search(r"'embeddings' .*zero.*\(1\).*103\.mp3", notes[0])
    assert re.search(r"labels .*metadata\.csv \(1\).*999_labels\.npz", notes[1])
    assert "'Crow' is never active in the split 'train'" in notes[2]


def write_audio(layout):
    (layout.path / "audio").mkdir()
    for i, filename in enumerate(layout.filenames):
        layout.audio_path(filename).write_bytes(bytes([i]) * 50)


def test_audio_may_be_absent_but_not_in_part(tiny):
    write_audio(tiny)
    assert problems_of(tiny) == []
    tiny.audio_path("104.mp3").unlink()
    tiny.audio_path("105.mp3").write_bytes(b"")
    first, second = problems_of(tiny)
    assert re.match(r"104\.mp3: .*104\.mp3.* \(9\)", first)
    assert re.match(r"105\.mp3: .* is empty", second)
    assert list(checker.survey(tiny).good) == list(tiny.filenames), "records need no audio"


def test_a_leak_is_found_in_a_recording_with_other_problems(tiny):
    shutil.copy(tiny.features_path("100.mp3"), tiny.features_path("109.mp3"))
    tiny.labels_path("109.mp3").unlink()
    missing, leak = problems_of(tiny)
    assert "There is no file" in missing
    assert re.match(r"109\.mp3: .*features .*100\.mp3", leak)


def copy_features(layout, source, target):
    shutil.copy(layout.features_path(source), layout.features_path(target))
    shutil.copy(layout.labels_path(source), layout.labels_path(target))


def test_recordings_that_two_splits_share_are_found(tiny):
    splits = read_splits(tiny)
    (line,) = checker.problems_of(tiny, checker.survey(tiny), splits | {"test": (*splits["test"], "100.mp3")})
    assert re.match(r"100\.mp3: .*'train' .*'test'", line)

    write_audio(tiny)
    shutil.copy(tiny.audio_path("100.mp3"), tiny.audio_path("101.mp3"))  # both train
    assert problems_of(tiny) == []
    shutil.copy(tiny.audio_path("100.mp3"), tiny.audio_path("109.mp3"))
    (line,) = problems_of(tiny)
    assert re.match(r"109\.mp3: .*audio .*100\.mp3.* 'test' .*'train'", line)
    copy_features(tiny, "102.mp3", "106.mp3")
    _, line = problems_of(tiny)
    assert re.match(r"106\.mp3: .*features .*102\.mp3.* 'validation' .*'train'", line)
    copy_features(tiny, "100.mp3", "109.mp3")
    assert len(problems_of(tiny)) == 2, "one line for a recording whose audio and features are both there twice"


def test_features_are_the_same_however_they_are_packed(tiny):
    copy_features(tiny, "100.mp3", "109.mp3")
    with np.load(tiny.features_path("100.mp3")) as archive:
        np.savez_compressed(tiny.features_path("109.mp3"), **archive)
    assert tiny.features_path("100.mp3").read_bytes() != tiny.features_path("109.mp3").read_bytes()
    assert len(problems_of(tiny)) == 1


def test_silent_recordings_are_no_leak(tmp_path):
    layout = write_layout(tmp_path, recordings={f"{i}.mp3": 20 for i in range(10)}, splits=True)
    for filename in layout.filenames:
        features = layout.features(filename, ("embeddings", "melspectrogram"))
        change_npz(layout.features_path(filename), **{key: np.zeros_like(value) for key, value in features.items()})
    assert problems_of(layout) == []


def test_shares_and_naive_cost_are_counted_by_frame_and_segment(tmp_path):
    # 4 segments, the last of 5 frames. Bell: 1 frame in each of two; Crow: 10 frames across two; Drum: never.
    layout = write_layout(tmp_path, recordings={"1.mp3": 35})
    bell, crow = np.zeros((35, 2)), np.zeros((35, 1))
    bell[3, 0] = bell[34, 1] = 1
    crow[5:15] = 1
    change_npz(layout.labels_path("1.mp3"), Bell=bell, Crow=crow, Drum=np.zeros((35, 3)))
    found = checker.survey(layout)
    result = found.good["1.mp3"]
    np.testing.assert_array_equal(result.active_frames, [2, 10, 0])
    np.testing.assert_array_equal(result.active_segments, [2, 2, 0])
    assert checker.all_off_cost([result], layout.task) == pytest.approx(0.5 * 50 * 5 + 0.5 * 50 * 10)
    rows = {line[:12].strip(): line.split()[-1] for line in
            checker.summary(layout, found, {"all": ("1.mp3",)}).splitlines()}
    assert (rows["Bell"], rows["Crow"], rows["Drum"]) == ("5.71", "28.57", "0.00")


@pytest.mark.skipif(not SOUNDSCAPES.is_dir(), reason=f"no real soundscapes in {SOUNDSCAPES}")
def test_naive_cost_of_the_real_soundscapes():
    layout = read_layout(SOUNDSCAPES)
    splits = read_splits(layout)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [360, 120, 120]
    found = checker.survey(layout, ("mfcc",))
    assert (found.contents.problems, len(found.good)) == ([], 600)
    for split, cost in (("test", 345.07), ("validation", 277.39)):
        results = [found.good[filename] for filename in splits[split]]
        assert checker.all_off_cost(results, layout.task) == pytest.approx(cost, abs=0.01)


# The command.


def run_process(*arguments) -> subprocess.CompletedProcess:
    # With the buffers that a person has, who sends both streams to one file.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-m", "data_prep.check", *map(str, arguments)], cwd=ROOT, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_command_ends_with_status_0_for_a_clean_directory(tiny):
    done = run_process(tiny.path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith("10 of 10 recordings are good")


def test_the_command_ends_with_status_2_and_the_number_of_problems(tiny):
    for filename in ("101.mp3", "102.mp3"):
        tiny.features_path(filename).unlink()
    done = run_process(tiny.path)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0].startswith("101.mp3: There is no file ")
    assert lines[1].startswith("102.mp3: There is no file ")
    assert lines[2].startswith("8 of 10 recordings are good")
    assert lines[-1] == f"Error: 2 problems in {tiny.path}."


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_one_directory_must_be_named(arguments):
    with pytest.raises(UserError, match="Name one directory"):
        run_command(checker, *arguments)


# Lengths and names.


def test_the_length_is_that_of_the_arrays_that_are_asked_for(tiny):
    frames = len(tiny.votes(BAD))
    with np.load(tiny.features_path(BAD)) as archive:
        held = dict(archive)
    np.savez(tiny.features_path(BAD), rate=np.float32(16000), short=np.zeros((3, 2)), wave=np.zeros(9000), **held)
    for keys in ((), ("embeddings",), ("mfcc", "embeddings"), ("audio", "mfcc")):
        assert tiny.num_frames(BAD, keys) == frames
    assert tiny.num_frames(BAD, ("short",)) == 3
    tiny.labels_path(BAD).unlink()
    assert tiny.num_frames(BAD) == frames
    np.savez(tiny.features_path(BAD), rate=np.float32(16000))
    with pytest.raises(UserError, match=r"103\.npz holds no array with rows"):
        tiny.num_frames(BAD)


@pytest.mark.parametrize("name", ["n" * 236 + ".mp3", "n" * 251 + ".mp3", "é" * 125 + ".mp3", "n" * 5000])
def test_a_recording_whose_name_no_file_can_have_is_listed(tiny, capsys, name):
    write_csv(tiny.path / "metadata.csv", ["filename"], [[each] for each in (*tiny.filenames, name)])
    (tiny.path / "splits.csv").unlink()
    for features in ("embeddings", "audio,embeddings"):
        (tiny.path / "audio").mkdir(exist_ok=True)
        (tiny.path / "audio" / BAD).touch()
        with pytest.raises(UserError, match="problem"):
            run_command(checker, tiny.path, f"--features={features}")
        assert f"{name}: " in capsys.readouterr().out
    with pytest.raises(UserError, match="so its length is unknown"):
        read_layout(tiny.path).num_frames(name)


@pytest.mark.parametrize("name", ["metadata.csv", "splits.csv", "costs.json"])
def test_a_pipe_hangs_nothing(tiny, name, capsys):
    (tiny.path / name).unlink()
    os.mkfifo(tiny.path / name)
    with pytest.raises(UserError) as error:
        run_command(checker, tiny.path)
    assert f"{name} is not a regular file" in f"{error.value} {capsys.readouterr().out}"


def test_classes_whose_names_are_those_of_files_and_parameters(tmp_path):
    classes = ("foo", "foo.npy", "file", "allow_pickle", "a/b", "../x")
    layout = write_layout(tmp_path, Task("odd", classes, ((0, 1, 0, 5),) * 6), recordings={"a.mp3": 12}, labels=False)
    (tmp_path / "labels").mkdir()
    savez(layout.labels_path("a.mp3"), {name: np.full((12, 1), i % 2) for i, name in enumerate(classes)})
    assert layout.votes("a.mp3")[0].tolist() == [0, 1, 0, 1, 0, 1]
    for name in ("a\0b", "\ud800", "x" * 70_000):
        with pytest.raises(UserError, match="cannot hold an array"):
            savez(tmp_path / "a.npz", {name: np.zeros(1)})
    for name in ("a\nb", "\x1b[31m", "a\0", "\ud800"):
        with pytest.raises(UserError, match=r"classes\[0\] must"):
            Task("odd", (name,), ((0, 1, 0, 5),))


def test_a_mark_is_a_vote_however_few_have_made_it(tiny):
    marks = np.zeros((len(tiny.votes(BAD)), 1))
    marks[3] = 1e-60
    change_npz(tiny.labels_path(BAD), Crow=marks)
    assert (tiny.votes(BAD)[:, 1] > 0).nonzero()[0].tolist() == [3]
