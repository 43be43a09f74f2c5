"""The page of a run: one file that needs nothing else, holds the recordings, and is safe from the names in it."""

import base64
import dataclasses
import hashlib
import io
import re

import numpy as np
import pytest
import soundfile
from pages import Page, detection, many_classes, write_page
from tiny import TINY_TASK, run_command
from workdirs import untrained

from sedjax.audio import reader
from sedjax.commands import predict
from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025
from sedjax.inference import figures, page
from sedjax.scoring.event_rules import EventRules

HOSTILE = ['</script><img src=x onerror=alert(1)>', "<!--<script>", "{script} \u2028 ' \" & \\", "]]></script>.wav"]


def rules(task, **others):
    return EventRules(np.full(len(task.classes), 0.5), **others)


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    """A second of a tone between half seconds of silence, at 44.1 kHz in stereo."""
    path = tmp_path_factory.mktemp("tone") / "tone.wav"
    time = np.arange(2 * 44100) / 44100
    samples = np.where((time > 0.5) & (time < 1.5), 0.5 * np.sin(2 * np.pi * 440 * time), 0)
    soundfile.write(path, np.stack([samples] * 2, axis=1), 44100)
    return path


@pytest.fixture(scope="module")
def written(tone, tmp_path_factory):
    """A page with two recordings, and their detections."""
    rng = np.random.default_rng(0)
    detections = [detection(rng.random((17, 3)).astype(np.float32), TINY_TASK, 32000, seed=i) for i in range(2)]
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_page(path, TINY_TASK, rules(TINY_TASK), [("a.wav", detections[0], tone), ("b/c.mp3", detections[1], tone)])
    return path, detections


def test_the_page_needs_nothing_else(written):
    content = Page(written[0])
    for tag, attributes in content.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base")
        assert not {"src", "srcset", "action", "background"} & set(attributes), tag
        assert attributes.get("href", "data:,") == "data:,"
    assert not re.search(r"https?:|url\(|@import|\bimport\(|fetch\(|XMLHttpRequest|WebSocket", content.text)
    (policy,) = (attributes["content"] for tag, attributes in content.tags
                 if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    digest = base64.b64encode(hashlib.sha256(content.code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy  # no other script runs
    assert "innerHTML" not in content.code
    assert not re.findall(r"\{[a-z_]+\}", content.text.replace(content.code, ""))  # no gap of the template is left


def test_sound_spectrogram_and_probabilities_come_back(written, tone):
    path, detections = written
    content = Page(path)
    assert [one["name"] for one in content.recordings] == ["a.wav", "b/c.mp3"]
    expected = reader.read(tone)
    for sound in content.contents("audio"):
        samples, rate_hz = soundfile.read(io.BytesIO(sound), dtype="float32")
        assert rate_hz == 16000
        assert len(samples) == len(expected)
        assert np.corrcoef(samples, expected)[0, 1] > 0.99  # and so in step: a sample of 440 Hz is 10 degrees
    for one, about, probabilities, levels in zip(detections, content.recordings, content.contents("probabilities"),
                                                 content.contents("spectrogram")):
        assert (about["seconds"], about["frames"], about["likely"]) == (2.0, 17, [0, 1, 2])
        np.testing.assert_array_equal(np.frombuffer(probabilities, "<f4").reshape(3, 17).T, one.frames)
        decibels, low, high = figures.decibels(one.features["melspectrogram"])
        shown = np.frombuffer(levels, np.uint8).reshape(17, 64) / 255 * (high - low) + low
        np.testing.assert_allclose(shown, np.maximum(decibels, low), atol=60 / 255)


def test_rules_are_in_frames(tone, tmp_path):
    seconds = np.array([0.0, 0.36, 1.0])
    given = EventRules(np.array([0.1, 0.2, 0.3], np.float32), np.array([0.05, 0.2, 0.1]), seconds, seconds, seconds)
    content = Page(write_page(tmp_path / "page.html", TINY_TASK, given, []))
    assert content.run["rules"] == {
        "thresholds": given.thresholds.tolist(), "lowThresholds": [0.05, 0.2, 0.1], "medianFrames": [1, 3, 9],
        "gapFrames": [0, 3, 8], "shortestFrames": [0, 3, 9]}
    assert content.recordings == []


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(tone, tmp_path, name):
    label = name.replace("\u2028", "")  # which names of classes may not contain
    task = dataclasses.replace(TINY_TASK, classes=("Bell", "</script><b>", label))
    plain = Page(write_page(tmp_path / "plain.html", TINY_TASK, rules(TINY_TASK),
                            [("a.wav", detection(np.ones((3, 3), np.float32), TINY_TASK), tone)]))
    content = Page(write_page(tmp_path / "page.html", task, rules(task),
                              [(name, detection(np.ones((3, 3), np.float32), task), tone)]))
    assert content.tags == plain.tags
    assert content.code == plain.code
    assert content.recordings[0]["name"] == name
    assert content.run["classes"] == list(task.classes)


def test_ten_minutes_of_noise_take_less_than_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise.wav", rng.uniform(-1, 1, 60 * 16000), 16000)
    one = detection(rng.random((500, 10)).astype(np.float32), MLPC_2025)
    path = write_page(tmp_path / "page.html", MLPC_2025, rules(MLPC_2025), [("noise.wav", one, tmp_path / "noise.wav")])
    assert path.stat().st_size < 1e6  # of one minute, template included


def test_of_447_classes_those_that_can_have_events_are_stored(tone, tmp_path):
    task = many_classes(MLPC_2025, 447)
    frames = np.full((17, 447), 0.001, np.float32)
    frames[3, [5, 300]] = 0.9, page.LOWEST_THRESHOLD + 0.001
    frames[4, [7, 446]] = page.LOWEST_THRESHOLD - 0.001, 0.01
    thresholds = np.full(447, 0.5)
    thresholds[446] = 0.005  # below all positions of the slider
    content = Page(write_page(tmp_path / "page.html", task, EventRules(thresholds),
                              [("a.wav", detection(frames, task), tone)]))
    assert content.recordings[0]["likely"] == [5, 300, 446]
    (probabilities,) = content.contents("probabilities")
    np.testing.assert_array_equal(np.frombuffer(probabilities, "<f4").reshape(3, 17).T, frames[:, [5, 300, 446]])


@pytest.mark.parametrize("samples", [1, 1920, 160_001])
def test_short_silent_and_loud_recordings(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", np.full(samples, 3.0), 16000, subtype="FLOAT")
    frames = -(-samples // 1920)
    one = detection(np.zeros((frames, 3), np.float32), TINY_TASK, samples)
    one.features["melspectrogram"][:] = 0
    content = Page(write_page(tmp_path / "page.html", TINY_TASK, rules(TINY_TASK), [("a", one, tmp_path / "a.wav")]))
    assert content.contents("spectrogram") == [bytes(frames * 64)]
    heard, _ = soundfile.read(io.BytesIO(content.contents("audio")[0]))
    assert len(heard) == samples


def test_a_page_that_fails_is_not_written(tone, tmp_path):
    one = detection(np.ones((3, 3), np.float32), TINY_TASK)
    with pytest.raises(UserError, match=r"gone\.wav"):
        write_page(tmp_path / "index.html", TINY_TASK, rules(TINY_TASK),
                   [("a.wav", one, tone), ("b.wav", one, tmp_path / "gone.wav")])
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_that_of_the_detections(tone, tmp_path):
    """Under which the browser stores corrections: the same page keeps them, another one has none."""
    def digest(name, frames):
        path = write_page(tmp_path / "index.html", TINY_TASK, rules(TINY_TASK),
                          [(name, detection(frames, TINY_TASK), tone)])
        return re.search(r'id="digest">"([0-9a-f]{32})"<', path.read_text())[1]

    ones = np.ones((3, 3), np.float32)
    assert digest("a", ones) == digest("a", ones)
    assert len({digest("a", ones), digest("b", ones), digest("a", ones / 2)}) == 3


def test_predict_writes_the_page(tone, tmp_path):
    workdir = untrained(tmp_path, "conv_transformer", {"melspectrogram": 64})
    (tmp_path / "in").mkdir()
    for name in ("one.wav", "two.wav"):
        (tmp_path / "in" / name).write_bytes(tone.read_bytes())
    (tmp_path / "in" / "bad.wav").write_bytes(b"x")
    with pytest.raises(SystemExit):
        run_command(predict, f"--workdir={workdir}", tmp_path / "in", f"--output={tmp_path / 'out'}", "--formats=html")
    content = Page(tmp_path / "out" / "index.html")
    assert [(one["name"], one["seconds"]) for one in content.recordings] == [("one.wav", 2.0), ("two.wav", 2.0)]
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"index.html", "bad_recordings.csv"}
    (tmp_path / "out" / "index.html").write_text("mine")
    with pytest.raises(UserError, match=r"index\.html already exists"):
        run_command(predict, f"--workdir={workdir}", tone, f"--output={tmp_path / 'out'}", "--formats=html")
