"""Event tables and frame scores from files, and the commands that take them."""

import json
import warnings

import numpy as np
import pytest
from sedjax.data_prep import ground_truth
from tiny import TINY_TASK, run_command, write_layout
from workdirs import untrained

from sedjax.commands import evaluate, score
from sedjax.commands.predict import predict_directory
from sedjax.core import grid
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task
from sedjax.inference import outputs
from sedjax.inference.trained import load_model
from sedjax.scoring.events import Event, frame_events, read_events, write_events
from sedjax.scoring.field_metrics import compute
from sedjax.scoring.frame_scores import FrameScores, frame_times, read_frame_scores

TASK = Task("field", ("mean", "a\\b", "macro_average", "Silence"), ((0, 1, 0, 5),) * 4)
HEADER = "filename\tonset\toffset\tevent_label\n"


def test_event_tables_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    truth = {f"{i}.wav": frame_events(rng.random((50, 4)) < 0.4, TASK) for i in range(5)} | {"silent\t.wav": []}
    write_events(tmp_path / "t.tsv", truth)
    assert read_events(tmp_path / "t.tsv", TASK) == truth
    (tmp_path / "t.tsv").write_text("score\tevent_label\toffset\tonset\tfilename\n0.5\tSpeech\t3\t1e0\ta.wav\n"
                                    "\t\t\t\tb.wav\n")
    assert read_events(tmp_path / "t.tsv", MLPC_2025) == {"a.wav": [Event(1, 3, "Speech")], "b.wav": []}


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty"),
    (HEADER.replace("offset", "end"), "line 1: the column 'offset' is missing"),
    (HEADER.replace("\t", ","), "line 1: the column 'filename' is missing"),
    (HEADER.replace("offset", "onset"), "line 1: the column 'onset' occurs more than once"),
    (HEADER + "a\t0\t1\n", "line 2: 3 fields, but the header has 4"),
    (HEADER + "a\t0\t1\tSpeech\t1\n", "line 2: 5 fields, but the header has 4"),
    (HEADER + "\t0\t1\tSpeech\n", "line 2, column 'filename'"),
    (HEADER + "a\t0\t1\tMusic\n", "line 2, column 'event_label': 'Music' is not a class of the task 'MLPC 2025'"),
    (HEADER + "a\t0\t1\t\n", "line 2, column 'event_label': ''"),
    (HEADER + "a\t\t1\tSpeech\n", "line 2, column 'onset': ''"),
    (HEADER + "a\tx\t1\tSpeech\n", "line 2, column 'onset': 'x'"),
    (HEADER + "a\t0\t1_0\tSpeech\n", "line 2, column 'offset': '1_0'"),
    (HEADER + "a\t-1\t1\tSpeech\n", "line 2, column 'onset': '-1'"),
    (HEADER + "a\t0\tnan\tSpeech\n", "line 2, column 'offset': 'nan'"),
    (HEADER + "a\t0\tinf\tSpeech\n", "line 2, column 'offset': 'inf'"),
    (HEADER + "a\t0\t1e300\tSpeech\n", "line 2, column 'offset': '1e300'"),
    (HEADER + "a\t2\t1\tSpeech\n", "line 2, column 'offset': the event ends at 1, but starts at 2"),
    (HEADER + "a\t1\t1\tSpeech\n", "line 2, column 'offset': the event ends at 1, but starts at 1"),
    (HEADER + "a\t3\t5\tSpeech\nb\t0\t9\tSpeech\na\t0\t9\tSiren\na\t1\t4\tSpeech\n",
     "line 5: the event of 'Speech' in 'a' overlaps or touches the one on line 2"),
    (HEADER + "a\t0\t1\tSpeech\na\t1\t2\tSpeech\n", "line 3: .* on line 2"),
])
def test_bad_rows_are_named(text, message, tmp_path):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(UserError, match=rf"t\.tsv.*{message}"):
        read_events(tmp_path / "t.tsv", MLPC_2025)


def test_frame_scores_are_read_from_npz_and_tsv(tmp_path):
    stems, order = {"0.wav": "0", "1.wav": "1", "2.wav": "other"}, [2, 0, 3, 1]
    rng = np.random.default_rng(0)
    scores = {filename: FrameScores(frame_times(frames, 0.12), rng.random((frames, 4), np.float32))
              for filename, frames in zip(stems, (1, 20, 33))}
    for folder in ("npz", "tsv"):
        (tmp_path / folder).mkdir()
    for filename, (times, values) in scores.items():
        np.savez(tmp_path / "npz" / f"{stems[filename]}.npz", probabilities=values[:, order],
                 classes=np.array(TASK.classes)[order], frame_seconds=0.12)
        rows = [["onset", "offset", *(TASK.classes[c] for c in order)],
                *([onset, offset, *row] for onset, offset, row in zip(times, times[1:], values[:, order].tolist()))]
        (tmp_path / "tsv" / f"{stems[filename]}.tsv").write_text("".join(
            "\t".join(map(str, row)) + "\n" for row in rows))
    for folder in ("npz", "tsv"):
        result = read_frame_scores(tmp_path / folder, stems, TASK)
        assert list(result) == list(scores)
        for filename, values in scores.items():
            np.testing.assert_allclose(result[filename].times, values.times)
            np.testing.assert_array_equal(result[filename].scores, values.scores)


FRAMES = {"probabilities": np.full((2, 4), 0.5, np.float32), "classes": np.array(TASK.classes), "frame_seconds": 0.12}


@pytest.mark.parametrize(("changes", "message"), [
    ({"probabilities": np.full((2, 3), 0.5)}, "shape"),
    ({"probabilities": np.full((0, 4), 0.5)}, "no frames"),
    ({"probabilities": np.full((2, 4), np.nan)}, "NaN"),
    ({"probabilities": np.full((2, 4), 1.5)}, "outside 0 to 1"),
    ({"probabilities": np.full(4, 0.5)}, "predict --frames"),
    ({"classes": np.array(("mean", "a\\b", "macro_average", "Noise"))}, "'Noise'"),
    ({"classes": np.array(("mean", "a\\b", "mean", "mean"))}, "'Silence'"),
    ({"frame_seconds": -0.12}, "follow one another"),
    ({"frame_seconds": np.nan}, "predict --frames"),
    ({"frame_seconds": np.inf}, "predict --frames"),
    ({"frame_seconds": np.array([0.12, 0.12])}, "predict --frames"),
])
def test_bad_frame_scores_are_named(changes, message, tmp_path):
    np.savez(tmp_path / "a.npz", **FRAMES)
    assert read_frame_scores(tmp_path, {"a.wav": "a"}, TASK)["a.wav"].scores.shape == (2, 4)
    np.savez(tmp_path / "a.npz", **FRAMES | changes)
    with pytest.raises(UserError, match=rf"a\.npz.*{message}"):
        read_frame_scores(tmp_path, {"a.wav": "a"}, TASK)


@pytest.mark.parametrize(("text", "message"), [
    ("", "onset and offset"), ("time\tA\n0\t1\n", "onset and offset"), ("onset\toffset\tA\n", "has no frames"),
    ("onset\toffset\tA\n0\t1\n", "line 2: expected 3 numbers"), ("onset\toffset\tA\n0\t1\tx\n", "line 2"),
    ("onset\toffset\tA\n0\t1\t0.5\n2\t3\t0.5\n", "previous one ends"),
    ("onset\toffset\tA\n1\t2\t0.5\n", "from 0 s"), ("onset\toffset\tA\n0\t1\t0.5\n1\t1\t0.5\n", "follow"),
    ("onset\toffset\tB\n0\t1\t0.5\n", "its classes"), ("onset\toffset\tA\n0\tnan\t0.5\n", "follow"),
])
def test_bad_tables_of_scores_are_named(text, message, tmp_path):
    task = Task("one", ("A",), ((0, 1, 0, 5),))
    (tmp_path / "a.tsv").write_text("onset\toffset\tA\n0\t1\t0.5\n1\t1.5\t0.25\n")
    assert read_frame_scores(tmp_path, {"a.wav": "a"}, task)["a.wav"].times.tolist() == [0, 1, 1.5]
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(UserError, match=rf"a\.tsv.*{message}"):
        read_frame_scores(tmp_path, {"a.wav": "a"}, task)


def test_frame_scores_must_be_those_of_the_recordings(tmp_path):
    np.savez(tmp_path / "a.npz", **FRAMES)
    with pytest.raises(UserError, match=r"no file .*b\.npz"):
        read_frame_scores(tmp_path, {"a.wav": "a", "b.wav": "b"}, TASK)
    np.savez(tmp_path / "c.npz", **FRAMES)
    with pytest.raises(UserError, match=r"c\.npz is of no recording"):
        read_frame_scores(tmp_path, {"a.wav": "a"}, TASK)
    with pytest.raises(UserError, match="no folder"):
        read_frame_scores(tmp_path / "none", {"a.wav": "a"}, TASK)


def test_score_reads_event_tables(tmp_path, capsys):
    layout = write_layout(tmp_path / "data", splits=True)
    for split in ([], ["--split=test"]):
        run_command(ground_truth, "--source", layout.path, *split, "--output", tmp_path / f"truth{len(split)}.tsv")
    truth = read_events(tmp_path / "truth0.tsv", layout.task)
    assert list(truth) == list(layout.filenames)
    for filename, events in truth.items():
        active = np.zeros(layout.votes(filename).shape, bool)
        for onset, offset, label in events:
            active[grid.event_frames(onset, offset, len(active), TINY_TASK), TINY_TASK.classes.index(label)] = True
        np.testing.assert_array_equal(active, layout.votes(filename) > 0)

    predicted = {filename: events[1:] for filename, events in truth.items()}
    write_events(tmp_path / "p.tsv", predicted)
    arguments = ["--predictions", tmp_path / "p.tsv", "--costs", layout.path / "costs.json", "--json",
                 tmp_path / "o.json", "--metrics=segment_f1,event_f1"]
    run_command(score, *arguments, "--ground_truth", tmp_path / "truth0.tsv")
    expected = compute(["segment_f1", "event_f1"], truth, TINY_TASK, predicted)
    assert json.loads((tmp_path / "o.json").read_text()) == json.loads(json.dumps({"metrics": expected}))
    header, *rows = capsys.readouterr().out.splitlines()[-7:]
    assert header.split() == ["segment_f1", "event_f1"]
    assert [row.split()[0] for row in rows[:-1]] == [*TINY_TASK.classes, "(macro)", "(micro)"]
    assert f"{expected['event_f1']['overall']['micro']['value']:.3f} [" in rows[-2]

    with pytest.raises(UserError, match=r"p\.tsv names 8 recordings that .*truth1\.tsv lacks"):
        run_command(score, *arguments, "--ground_truth", tmp_path / "truth1.tsv")
    with pytest.raises(UserError, match=r"truth0\.tsv names 8 recordings that .*data lacks"):
        run_command(score, *arguments, "--ground_truth", tmp_path / "truth0.tsv", "--dataset", layout.path,
                    "--split=test")
    # The data set knows the recordings without events.
    lines = (tmp_path / "truth0.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "truth1.tsv").write_text("".join(line for line in lines if "\t\t" not in line))
    run_command(score, *arguments, "--ground_truth", tmp_path / "truth1.tsv", "--dataset", layout.path)
    assert json.loads((tmp_path / "o.json").read_text()) == json.loads(json.dumps({"metrics": expected}))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--metrics=f1"], "--metrics takes any of .*'f1'"),
    (["--metrics=event_f1"], "'event_f1' needs --ground_truth"),
    (["--metrics=cost,event_f1", "--ground_truth=g.tsv"], "once for each"),
    (["--metrics=event_f1", "--ground_truth=g.csv"], r"g\.csv, line 1: the column"),
    (["--metrics=event_f1", "--ground_truth=g.tsv"], "no event"),
])
def test_wrong_arguments_of_score_are_explained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.csv").write_text("filename,onset,Speech\n1.mp3,0.0,1\n")
    (tmp_path / "g.tsv").write_text(HEADER + "1.mp3\t\t\t\n")
    (tmp_path / "p.tsv").write_text(HEADER)
    with pytest.raises(UserError, match=message):
        run_command(score, "--predictions=p.tsv", *arguments)


def evaluated(workdir, records, folder, metrics: str) -> dict:
    run_command(evaluate, f"--workdir={workdir}", f"--data={records}", f"--metrics={metrics}",
                f"--json={folder / 'e.json'}", "--split=validation")
    return json.loads((folder / "e.json").read_text())


def scored(workdir, source, folder, metrics: str) -> dict:
    """The metrics from files: what `predict` writes of recordings, and what `truth` writes."""
    model = load_model(workdir)
    detections = predict_directory(model, source, "validation")
    out = folder / "out"
    out.mkdir()
    for stem, detection in zip(outputs.stems(list(detections)), detections.values()):
        outputs.write_files(out, stem, detection, model, ["frames"])
    outputs.write_tables(out, model.task, {}, {name: d.events for name, d in detections.items()}, ["tsv"])
    run_command(ground_truth, f"--source={source}", "--split=validation", f"--output={folder / 't.tsv'}")
    run_command(score, f"--predictions={out}", f"--ground_truth={folder / 't.tsv'}", f"--metrics={metrics}",
                f"--dataset={source}", "--split=validation", f"--json={folder / 's.json'}")
    return json.loads((folder / "s.json").read_text())


@pytest.mark.parametrize("names", ["segment_f1,event_f1", "psds,map"])
def test_evaluate_and_score_agree(names, source, records, tmp_path):
    if "psds" in names:
        with warnings.catch_warnings(action="ignore"):
            pytest.importorskip("sed_scores_eval", exc_type=ImportError)
    workdir = untrained(tmp_path, "embedding_transformer", {"embeddings": 16})
    result = evaluated(workdir, records, tmp_path, names)
    assert set(evaluated(workdir, records, tmp_path, "cost")) == set(result) - {"metrics"}
    assert result["metrics"] == scored(workdir, source, tmp_path, names)["metrics"]
    assert result["metrics"]
    assert all(figure["value"] is not None for metric in result["metrics"].values()
               for figure in metric["overall"].values())
