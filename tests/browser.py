"""The page of a run in Chromium: `make test-browser`.

Runs in a separate environment with Playwright; CHROMIUM names the browser.
"""

import csv
import dataclasses
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import soundfile
from pages import detection, many_classes, write_page
from playwright.sync_api import expect, sync_playwright

from sedjax.core.task import MLPC_2025
from sedjax.scoring.event_rules import EventRules, find_events

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
TASK = dataclasses.replace(MLPC_2025, classes=("Speech", "Dog Bark", "</script><b>Siren", "Silent"),
                           costs=MLPC_2025.costs[:4])
THRESHOLDS = np.array([0.45, 0.5, 0.61, 0.5], np.float32)
RULES = {"plain": {}, "low": {"low_thresholds": 0.3}, "median": {"median": 0.6}, "longest median": {"median": 60.0},
         "gap": {"merge_gap": 0.36}, "shortest": {"min_duration": 0.48},
         "all": {"low_thresholds": 0.35, "median": 0.36, "merge_gap": 0.24, "min_duration": 0.36}}
HOSTILE = '"><img src=x onerror=alert(1)></script>\u2028.wav'
SECONDS = 12.5
CLICK_SECONDS = 7.0


def rules(**others) -> EventRules:
    return EventRules(THRESHOLDS, **{name: np.full(len(TASK.classes), value) for name, value in others.items()})


def frames(seed: int = 0) -> np.ndarray:
    """Probabilities that wander, some of which are exactly positions of the slider; the last class is silent."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 0.15, (105, 4)).cumsum(axis=0)
    values = (0.5 + 0.5 * np.sin(steps)).astype(np.float32)
    values[::7] = np.round(values[::7], 2)
    values[:, 3] = 0
    return values


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> pathlib.Path:
    """Noise with a loud click."""
    samples = np.random.default_rng(0).normal(0, 0.001, round(SECONDS * 16000))
    first = round(CLICK_SECONDS * 16000)
    samples[first : first + 400] = 0.9 * np.sin(np.arange(400))
    path = tmp_path_factory.mktemp("recording") / "a.wav"
    soundfile.write(path, samples, 16000)
    return path


@pytest.fixture
def show(browser, recording, tmp_path):
    """A function that opens a page with three recordings; at the end, nothing was loaded and nothing went wrong."""
    errors, requests, contexts = [], [], []

    def show(given: EventRules | None = None, task=TASK, probabilities=frames, **options):
        path = write_page(tmp_path / "index.html", task, given or rules(),
                          [(name, detection(probabilities(seed), task, round(SECONDS * 16000)), recording)
                           for seed, name in enumerate(("first.wav", HOSTILE, "third.wav"))])
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        until(page, "audio.readyState > 0")
        return page

    yield show
    for context in contexts:
        context.close()
    assert errors == []
    assert not [url for url in requests if not url.startswith(("file:///", "blob:", "data:"))]
    assert len([url for url in requests if url.startswith("file:")]) <= 2  # the page, twice if it is reloaded


def until(page, condition: str) -> None:
    """Waits; Playwright's own function takes eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never {condition}")


def shown(page, label: int) -> list[tuple[float, float]]:
    """Onset and offset of the events of a class, as drawn."""
    lane = page.locator(".lane").nth(label)
    return [(round(onset, 6), round(onset + seconds, 6)) for onset, seconds in lane.locator(".event").evaluate_all(
        "events => events.map(e => ['--onset', '--seconds'].map(name => Number(e.style.getPropertyValue(name))))")]


def expected(given: EventRules, label: int, threshold: float | None = None, seed: int = 0) -> list[tuple[float, float]]:
    if threshold is not None:
        thresholds = np.array(given.thresholds, float)
        thresholds[label] = threshold
        given = dataclasses.replace(given, thresholds=thresholds)
    return [(round(first * 0.12, 6), round(min(end * 0.12, SECONDS), 6))
            for number, first, end in find_events(frames(seed), given, TASK) if number == label]


def slider(page, label: int):
    return page.locator(".lane").nth(label).locator("input")


def now(page) -> float:
    return page.evaluate("audio.currentTime")


def saved(page, tmp_path) -> list[tuple[str, str, str, str]]:
    """The rows of the labels that the page saves."""
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "labels.tsv"
    download.value.save_as(tmp_path / "labels.tsv")
    with open(tmp_path / "labels.tsv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert header == ["filename", "onset", "offset", "event_label"]
    return [tuple(row) for row in rows]


def text(seconds: float) -> str:
    return f"{seconds:.3f}"


@pytest.mark.parametrize("name", RULES)
def test_sliders_give_the_events_of_find_events(show, name):
    given = rules(**RULES[name])
    page = show(given)
    total = 0
    for label in range(4):
        assert shown(page, label) == expected(given, label)
        for threshold in (0.02, 0.36, 0.45, 0.5, 0.55, 0.61, 0.7, 0.83, 0.98):
            if threshold < given.thresholds[label] and given.low_thresholds is not None:
                continue  # `predict` refuses thresholds below the low one
            if label < 3:
                slider(page, label).fill(str(threshold))
                assert shown(page, label) == expected(given, label, threshold), (label, threshold)
                total += len(shown(page, label))
    assert total > 10 or name == "longest median"
    expect(slider(page, 3)).to_be_disabled()  # no position has events
    page.click("#reset")
    assert [shown(page, label) for label in range(4)] == [expected(given, label) for label in range(4)]


def test_thresholds_are_those_of_all_recordings_and_written_as_a_flag(show):
    page = show()
    slider(page, 1).fill("0.8")
    slider(page, 0).fill("0.3")
    expect(page.locator("#flags")).to_have_text('--threshold="Speech=0.3,Dog Bark=0.8"')
    page.click("#list li:nth-child(2) button")
    assert shown(page, 1) == expected(rules(), 1, 0.8, seed=1)
    assert shown(page, 2) == expected(rules(), 2, seed=1)
    expect(page.locator("#name")).to_have_text(HOSTILE)


def test_the_sound_is_in_step(show):
    page = show()
    click = page.evaluate("""async () => {
        const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes("audio", view.recording).buffer);
        return sound.getChannelData(0).findIndex(sample => Math.abs(sample) > 0.5) / 16000; }""")
    assert abs(click - CLICK_SECONDS) < 0.001
    box = page.locator("#spectrogram").bounding_box()
    page.mouse.click(box["x"] + box["width"] * CLICK_SECONDS / SECONDS, box["y"] + 50)
    assert abs(now(page) - CLICK_SECONDS) < 0.02
    playhead = page.locator("#playhead").bounding_box()
    assert abs(playhead["x"] + 1 - box["x"] - box["width"] * now(page) / SECONDS) < 1.5
    page.fill("#seek", "3")
    assert now(page) == 3


def test_the_spectrogram_is_that_of_the_frames(show):
    """A frame that is louder than the others is a bright column at its place."""
    page = show()
    page.evaluate("view.levels.fill(0); view.levels.fill(255, 50 * run.bands, 51 * run.bands); drawSpectrogram()")
    row = page.evaluate("""() => { const canvas = spectrogram.firstElementChild;
        const image = canvas.getContext("2d").getImageData(0, 50, canvas.width, 1);
        return [...image.data].filter((_, i) => i % 4 == 0); }""")
    assert abs(np.argmax(row) / len(row) - 50.5 * 0.12 / (105 * 0.12)) < 0.01


def test_keys_play_seek_and_zoom(show):
    page = show()
    page.keyboard.press("ArrowRight")
    assert now(page) == 1
    page.keyboard.press("Shift+ArrowRight")
    assert now(page) == 6
    page.keyboard.press("ArrowLeft")
    assert now(page) == 5
    page.keyboard.press(" ")
    until(page, "audio.currentTime > 5.2")
    expect(page.locator("#play")).to_have_accessible_name("Pause")
    page.keyboard.press(" ")
    expect(page.locator("#play")).to_have_accessible_name("Play")
    page.keyboard.press("End")
    assert now(page) == pytest.approx(SECONDS, abs=0.1)
    page.keyboard.press("Home")
    assert now(page) == 0
    page.keyboard.press("+")
    assert page.evaluate("view.zoom") == 2
    page.keyboard.press("0")
    assert page.evaluate("view.zoom") == 1
    slider(page, 0).focus()
    page.keyboard.press("ArrowRight")  # of a slider, not of the player
    assert now(page) == 0
    assert page.evaluate("thresholds[0]") == 0.46


def test_everything_is_reached_by_tab_and_visible(show):
    page = show()
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(page.evaluate("""() => { const e = document.activeElement, style = getComputedStyle(e);
            const name = e == document.body ? "the end" : e.ariaLabel || e.textContent || e.id;
            return [name, style.outlineStyle != "none"]; }"""))
    names = names[: next(i for i, (name, _) in enumerate(names) if name == "the end")]
    assert [name for name, is_visible in names if not is_visible] == []
    reached = [name for name, _ in names]
    order = [next(i for i, name in enumerate(reached) if name.startswith(start)) for start in (
        "first.wav", "Play", "Position", "Zoom out", "New event", "Threshold of Speech", "Speech, ",
        "Threshold of Dog Bark")]
    assert order == sorted(order)


def test_marks_are_saved_as_labels(show, tmp_path):
    page = show()
    expect(page.locator("#save")).to_be_disabled()
    events = expected(rules(), 0)
    speech = page.locator(".lane").nth(0).locator(".event")
    speech.nth(0).focus()
    page.keyboard.press("f")
    expect(speech.nth(0)).to_have_accessible_name(re.compile(
        f"^Speech, {text(events[0][0])} to {text(events[0][1])} s, score 0...?, marked false$"))
    expect(speech.nth(0)).to_be_focused()
    speech.nth(1).click()
    page.click("#true")
    expect(page.locator("#true")).to_have_attribute("aria-pressed", "true")
    slider(page, 0).fill("0.98")  # marked events stay
    assert shown(page, 0) == events[:2]
    slider(page, 0).fill("0.45")
    rest = sorted((onset, offset, TASK.classes[label]) for label in range(3) for onset, offset in expected(
        rules(), label))
    rest.remove((*events[0], "Speech"))
    assert saved(page, tmp_path) == [("first.wav", text(onset), text(offset), label) for onset, offset, label in sorted(
        rest, key=lambda row: (row[0], TASK.classes.index(row[2])))]
    speech.nth(0).focus()
    page.keyboard.press("f")  # again: no mark
    assert ("first.wav", text(events[0][0]), text(events[0][1]), "Speech") in saved(page, tmp_path)


def test_a_recording_without_events_is_one_row(show, tmp_path):
    page = show()
    page.click("#list li:nth-child(2) button")
    page.check("#checked")
    for label in range(3):
        slider(page, label).fill("0.98")
    for event in page.locator(".event").all():
        event.focus()
        page.keyboard.press("f")
    assert saved(page, tmp_path) == [(HOSTILE, "", "", "")]
    page.uncheck("#checked")
    expect(page.locator("#save")).to_be_disabled()


def test_drawing_with_the_mouse(show, tmp_path):
    page = show()
    track = page.locator(".lane").nth(3).locator(".track")
    box = track.bounding_box()
    y, at = box["y"] + 20, lambda seconds: box["x"] + box["width"] * seconds / SECONDS
    page.mouse.move(at(2), y)
    page.mouse.down()
    page.mouse.move(at(3), y)
    expect(page.locator(".draft")).to_be_visible()
    page.mouse.move(at(4), y)
    page.mouse.up()
    ((onset, offset),) = shown(page, 3)
    assert (onset, offset) == (pytest.approx(2, abs=0.02), pytest.approx(4, abs=0.02))
    assert page.locator(".draft").count() == 0
    page.fill("#onset", "2.25")
    page.press("#onset", "Enter")
    assert shown(page, 3) == [(2.25, offset)]
    page.fill("#offset", "1")  # before the onset: no event
    page.press("#offset", "Enter")
    assert shown(page, 3) == [(2.25, offset)]
    assert ("first.wav", "2.250", text(offset), "Silent") in saved(page, tmp_path)
    page.mouse.click(at(10), y)
    assert now(page) == pytest.approx(10, abs=0.02)
    page.locator(".lane").nth(3).locator(".event").focus()
    page.keyboard.press("Delete")
    assert shown(page, 3) == []


def test_drawing_over_an_event_replaces_it(show):
    page = show()
    page.evaluate("draw(0, 0, 12.5)")
    assert shown(page, 0) == [(0, 12.5)]
    page.evaluate("draw(0, 3, 4)")
    assert (3, 4) in shown(page, 0)
    assert (0, 12.5) not in shown(page, 0)
    page.click("#remove")
    assert shown(page, 0) == expected(rules(), 0)


def test_drawing_and_classes_with_keys(show):
    page = show()
    page.keyboard.press("ArrowRight")
    page.evaluate("thresholds[0] = 1; showLanes()")
    slider(page, 0).focus()
    page.keyboard.press("n")
    assert shown(page, 0) == [(1, 2)]
    expect(page.locator(".event:focus")).to_have_accessible_name("Speech, 1.000 to 2.000 s, drawn by hand")
    page.select_option("#event-class", label="Silent")
    assert (shown(page, 0), shown(page, 3)) == ([], [(1, 2)])


def test_an_event_alone_is_played(show):
    page = show()
    page.evaluate("draw(3, 2, 2.4)")
    page.click("#listen")
    until(page, "!audio.paused")
    until(page, "audio.paused")
    assert 2.4 <= now(page) < 2.7


def test_work_survives_a_reload(show, tmp_path):
    page = show()
    page.evaluate("draw(3, 2, 3)")
    slider(page, 1).fill("0.77")
    page.reload()
    assert shown(page, 3) == [(2, 3)]
    assert shown(page, 1) == expected(rules(), 1, 0.77)
    assert ("first.wav", "2.000", "3.000", "Silent") in saved(page, tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(show, scheme):
    page = show(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    expect(page.locator("#list")).to_be_hidden()
    page.tap("#show-list")
    page.locator("#list button").nth(2).tap()
    expect(page.locator("#name")).to_have_text("third.wav")
    expect(page.locator("#list")).to_be_hidden()
    expect(page.locator(".lane")).to_have_count(3)  # those with events
    page.locator(".event").first.tap()
    page.tap("#true")
    expect(page.locator(".event.true")).to_have_count(1)
    sizes = page.locator("main button:visible:not(.event)").evaluate_all("all => all.map(e => e.offsetHeight)")
    assert min(sizes) >= 40
    page.touchscreen.tap(200, page.locator("#spectrogram").bounding_box()["y"] + 20)
    assert now(page) > 0


def test_447_classes(show):
    task = many_classes(MLPC_2025, 447)

    def probabilities(seed):
        values = np.zeros((105, 447), np.float32)
        values[10:20, [3, 200 + seed]] = 0.9
        return values

    page = show(EventRules(np.full(447, 0.5)), task, probabilities)
    expect(page.locator(".lane .name")).to_have_text(["Class 3", "Class 200"])
    page.fill("#filter", "class 44")
    expect(page.locator(".lane")).to_have_count(8)
    page.fill("#filter", "")
    page.check("#show-silent")
    expect(page.locator(".lane")).to_have_count(447)
