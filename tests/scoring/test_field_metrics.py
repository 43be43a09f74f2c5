"""The field's metrics against brute force and, where they are installed (`make test-metrics`), against the packages."""

import itertools
import sys
import warnings

import numpy as np
import pytest
from tiny import run_command

from sedjax.commands import evaluate, score
from sedjax.core import grid
from sedjax.core.errors import UserError
from sedjax.core.task import Task
from sedjax.scoring import field_metrics, score_metrics
from sedjax.scoring.events import Event, Events, frame_events
from sedjax.scoring.field_metrics import compute
from sedjax.scoring.frame_scores import FrameScores, frame_times

# Names that mean something to the packages.
TASK = Task("field", ("mean", "a\\b", "macro_average", "Silence"), ((0, 1, 0, 5),) * 4)
THRESHOLD = np.float32(0.45)


@pytest.fixture
def packages():
    """Modules sed_eval and sed_scores_eval; skips the test where they are not installed."""
    with warnings.catch_warnings(action="ignore"):
        return (pytest.importorskip("sed_eval", exc_type=ImportError),
                pytest.importorskip("sed_scores_eval", exc_type=ImportError))


def random_outputs(seed: int, recordings: int = 12, task: Task = TASK) -> tuple[Events, dict[str, FrameScores]]:
    """True events on the frame grid and frame scores that resemble them; the last class is never active.

    Scores are rounded, so that many are equal.
    """
    rng = np.random.default_rng(seed)
    truth, scores = {}, {}
    for number in range(recordings):
        frames, classes = int(rng.integers(20, 90)), len(task.classes)
        active = (rng.random((frames // 10 + 1, classes)) < 0.25).repeat(10, axis=0)[:frames]
        active[:, -1] = False
        smooth = rng.random((frames // 5 + 1, classes)).repeat(5, axis=0)[:frames]
        noisy = 0.35 * active + 0.5 * smooth + 0.15 * rng.random((frames, classes))
        truth[f"{number}.wav"] = frame_events(active, task)
        scores[f"{number}.wav"] = FrameScores(frame_times(frames, 0.12), np.round(noisy, 2).astype(np.float32))
    return truth, scores


def detected(scores: dict[str, FrameScores], threshold: float = THRESHOLD, task: Task = TASK) -> Events:
    return {filename: frame_events(values.scores > threshold, task) for filename, values in scores.items()}


def random_times(seed: int, recordings: int = 20) -> tuple[Events, Events]:
    """True and predicted events, many near one another; no difference is equal to a collar, where rounding decides."""
    rng = np.random.default_rng(seed)
    sides = {}, {}
    for number, label in itertools.product(range(recordings), TASK.classes[:3]):
        edges = np.sort(rng.choice(np.arange(1, 12_000), 2 * int(rng.integers(1, 6)), replace=False))
        moved = np.sort(np.maximum(edges + np.rint(rng.normal(scale=150, size=len(edges))).astype(int), 0))
        for side, times, shift in zip(sides, (edges, moved), (0, 0.0003)):
            rows = side.setdefault(f"{number}.wav", [])
            if len(np.unique(times)) == len(times):
                rows += [Event(on, off, label) for on, off in (times / 1000 + shift).reshape(-1, 2).tolist()]
    return sides


# Brute force


def brute_segments(predicted: Events, truth: Events, task: Task) -> np.ndarray:
    counts = np.zeros((len(task.classes), 3), int)
    for filename, (c, label), segment in itertools.product(truth, enumerate(task.classes), range(20)):
        said, real = (any(event.label == label and event.onset < segment + 1 - 1e-6 and event.offset > segment + 1e-6
                          for event in events.get(filename, ())) for events in (predicted, truth))
        counts[c] += (said and real, said and not real, real and not said)
    return counts


def brute_events(predicted: Events, truth: Events, task: Task) -> np.ndarray:
    counts = np.zeros((len(task.classes), 3), int)
    for filename, (c, label) in itertools.product(truth, enumerate(task.classes)):
        said, real = ([event for event in events.get(filename, ()) if event.label == label]
                      for events in (predicted, truth))

        def matched(rest: list[Event], free: frozenset[int], real: list[Event] = real) -> int:
            """The most matches of the predicted events in `rest` with true ones in `free`."""
            if not rest:
                return 0
            first, *others = rest
            return max([matched(others, free), *(1 + matched(others, free - {j}) for j in free if matches(
                first, real[j]))])

        hits = matched(said, frozenset(range(len(real))))
        counts[c] += (hits, len(said) - hits, len(real) - hits)
    return counts


def matches(said: Event, real: Event) -> bool:
    collar = max(0.2, 0.2 * (real.offset - real.onset))
    return abs(said.onset - real.onset) <= 0.2 + 1e-6 and abs(said.offset - real.offset) <= collar + 1e-6


def brute_f1(counts: np.ndarray) -> list[float | None]:
    """F1 of each class."""
    return [2 * tp / (2 * tp + fp + fn) if tp + fn else None for tp, fp, fn in counts.tolist()]


def brute_psds(scores: dict[str, FrameScores], truth: Events, task: Task, scenario: score_metrics.Scenario) -> float:
    """PSDS as Bilen et al. define it, from the events at each threshold."""
    classes = [label for label in task.classes if any(e.label == label for events in truth.values() for e in events)]
    seconds = sum(values.times[-1] for values in scores.values())
    lengths = {label: sum(e.offset - e.onset for events in truth.values() for e in events if e.label == label)
               for label in classes}
    points = {label: [(0.0, 0.0)] for label in classes}  # rate and ratio
    for threshold in np.unique(np.concatenate([values.scores.ravel() for values in scores.values()])):
        said = {filename: frame_events(values.scores >= threshold, task) for filename, values in scores.items()}
        for label in classes:
            true_positives = false_positives = actual = 0
            crossed = dict.fromkeys(classes, 0)
            for filename, events in truth.items():
                mine = [e for e in said[filename] if e.label == label]
                relevant = [e for e in mine if common(e, events, label) >= scenario.dtc * length(e) - 1e-6]
                false_positives += len(mine) - len(relevant)
                for other in set(classes) - {label} if scenario.cttc else ():
                    crossed[other] += sum(common(e, events, other) >= scenario.cttc * length(e) - 1e-6
                                          for e in mine if e not in relevant)
                real = [e for e in events if e.label == label]
                actual += len(real)
                true_positives += sum(common(e, relevant, label) >= scenario.gtc * length(e) - 1e-6 for e in real)
            rate = false_positives / seconds
            if scenario.cttc:
                rate += scenario.alpha_ct * np.mean([crossed[other] / lengths[other]
                                                     for other in classes if other != label])
            points[label].append((rate * 3600, true_positives / actual))
    rates = sorted({rate for rows in points.values() for rate, _ in rows if rate <= 100})
    area = 0.0
    for rate, after in itertools.pairwise([*rates, 100]):
        ratios = [max(ratio for x, ratio in points[label] if x <= rate) for label in classes]
        area += max(np.mean(ratios) - scenario.alpha_st * np.std(ratios), 0) * (after - rate)
    return area / 100


def common(event: Event, others: list[Event], label: str) -> float:
    return sum(max(min(event.offset, e.offset) - max(event.onset, e.onset), 0) for e in others if e.label == label)


def length(event: Event) -> float:
    return event.offset - event.onset


def brute_average_precision(scores: dict[str, FrameScores], truth: Events, task: Task) -> list[float | None]:
    values = []
    for c, label in enumerate(task.classes):
        rows = []
        for filename, (times, frames) in scores.items():
            for segment in range(int(np.ceil(times[-1] - 1e-6))):
                inside = (times[:-1] < segment + 1 - 1e-6) & (times[1:] > segment + 1e-6)
                rows.append((frames[inside, c].max(), any(
                    e.label == label and e.onset < segment + 1 - 1e-6 and e.offset > segment + 1e-6
                    for e in truth[filename])))
        positives = sum(real for _, real in rows)
        area, reached = 0.0, 0
        for threshold in sorted({value for value, _ in rows}, reverse=True):
            above = [real for value, real in rows if value >= threshold]
            area += (sum(above) - reached) * sum(above) / len(above)
            reached = sum(above)
        values.append(area / positives if positives else None)
    return values


def values_of(figures: dict) -> list[float | None]:
    return [figure["value"] for figure in figures.values()]


def close(values: list[float | None]):
    """Equal to 1e-9; approx does not take None in a list."""
    return [None if value is None else pytest.approx(value, abs=1e-9) for value in values]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["segment_f1", "event_f1"])
def test_f1_is_that_of_brute_force(name, seed, monkeypatch):
    monkeypatch.setattr(field_metrics, "RESAMPLES", 20)
    truth, scores = random_outputs(seed)
    for predicted, actual in ((detected(scores), truth), random_times(seed)[::-1]):
        counts = {"segment_f1": brute_segments, "event_f1": brute_events}[name](predicted, actual, TASK)
        result = compute([name], actual, TASK, predicted)[name]
        expected = brute_f1(counts)
        assert list(result["classes"]) == list(TASK.classes)
        assert values_of(result["classes"]) == close(expected)
        assert expected[3] is None
        assert 0 < max(expected[:3]) < 1
        assert result["overall"]["macro"]["value"] == pytest.approx(np.mean(expected[:3]), abs=1e-9)
        assert result["overall"]["micro"]["value"] == pytest.approx(*brute_f1(counts.sum(0)[None]), abs=1e-9)


def test_events_are_matched_as_well_as_possible():
    # Taken in order, the first predicted event would take the true event that is the only one for the second.
    predicted, actual = np.array([[1.0, 2.0], [1.15, 2.15]]), np.array([[0.85, 1.85], [1.1, 2.0]])
    assert field_metrics.event_outcomes(predicted, actual) == (2, 0, 0)
    assert field_metrics.event_outcomes(predicted[::-1][:1], actual) == (1, 0, 1)


@pytest.mark.parametrize(("said", "hit"), [
    ((0.9, 10.7), 1), ((0.901, 10.7), 0), ((0.5, 10.7), 1), ((0.7, 12.7), 1), ((0.7, 12.701), 0), ((0.7, 8.7), 1)])
def test_the_collars_are_those_of_dcase(said, hit):
    """0.9 - 0.7 is more than 0.2 in floating point."""
    assert field_metrics.event_outcomes(np.array([said]), np.array([[0.7, 10.7]])) == (hit, 1 - hit, 1 - hit)


def test_a_class_that_is_never_predicted_counts_as_0_and_one_without_events_not_at_all():
    truth = {"a": [Event(0, 1, "mean"), Event(2, 3, "a\\b")], "b": []}
    predicted = {"a": [Event(0, 1, "mean"), Event(0, 1, "Silence")]}
    result = compute(["event_f1"], truth, TASK, predicted)["event_f1"]
    assert values_of(result["classes"]) == [1, 0, None, None]
    assert values_of(result["overall"]) == [0.5, 0.5]


def test_intervals_are_percentiles_over_recordings():
    truth, scores = random_outputs(0, recordings=40)
    predicted = detected(scores)
    figure = compute(["segment_f1"], truth, TASK, predicted)["segment_f1"]["overall"]["micro"]
    per_recording = np.array([brute_segments(predicted, {name: events}, TASK).sum(0) for name, events in truth.items()])
    drawn = per_recording[np.random.default_rng(1).integers(40, size=(4000, 40))].sum(1)
    expected = np.percentile(2 * drawn[:, 0] / (drawn @ [2, 1, 1]), [2.5, 97.5])
    assert figure["interval"] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    alone = compute(["segment_f1"], {"0.wav": truth["0.wav"]}, TASK, predicted)["segment_f1"]["overall"]["micro"]
    assert alone["interval"] == pytest.approx([alone["value"]] * 2)


# Against the packages


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["segment_f1", "event_f1"])
def test_f1_is_that_of_sed_eval(name, seed, packages, monkeypatch):
    monkeypatch.setattr(field_metrics, "RESAMPLES", 20)
    sed_eval, _ = packages
    truth, predicted = random_times(seed)
    metric = {"segment_f1": sed_eval.sound_event.SegmentBasedMetrics(list(TASK.classes), time_resolution=1.0),
              "event_f1": sed_eval.sound_event.EventBasedMetrics(
                  list(TASK.classes), t_collar=0.2, percentage_of_length=0.2, event_matching_type="optimal",
                  empty_system_output_handling="zero_score")}[name]
    for filename in truth:
        metric.evaluate(*([{"filename": filename, "event_onset": e.onset, "event_offset": e.offset,
                            "event_label": e.label} for e in events[filename]] for events in (truth, predicted)))
    result = compute([name], truth, TASK, predicted)[name]
    for label, figure in result["classes"].items():
        expected = metric.results_class_wise_metrics()[label]["f_measure"]["f_measure"]
        assert figure["value"] == (None if np.isnan(expected) else pytest.approx(expected, abs=1e-9))
    assert values_of(result["overall"]) == close([
        metric.results_class_wise_average_metrics()["f_measure"]["f_measure"],
        metric.results_overall_metrics()["f_measure"]["f_measure"]])


def package_inputs(scores: dict[str, FrameScores], truth: Events, classes: list[int]) -> tuple[dict, dict, dict]:
    """Scores, truth and durations for sed_scores_eval, without the classes that have no events."""
    pandas = pytest.importorskip("pandas")
    frames = {filename: pandas.DataFrame({"onset": times[:-1], "offset": times[1:],
                                          **{f"c{c}": values[:, c] for c in classes}})
              for filename, (times, values) in scores.items()}
    events = {filename: [(e.onset, e.offset, f"c{TASK.classes.index(e.label)}") for e in truth[filename]]
              for filename in scores}
    return frames, events, {filename: float(values.times[-1]) for filename, values in scores.items()}


@pytest.mark.parametrize("seed", range(3))
def test_event_f1_is_that_of_sed_scores_eval_on_the_frame_grid(seed, packages):
    """There, differences are often equal to the collar, up to rounding."""
    from sed_scores_eval import collar_based

    truth, scores = random_outputs(seed)
    expected, *_ = collar_based.fscore(*package_inputs(scores, truth, [0, 1, 2])[:2], float(THRESHOLD),
                                       onset_collar=0.2, offset_collar=0.2, offset_collar_rate=0.2)
    predicted = {filename: [event for event in events if event.label != "Silence"]
                 for filename, events in detected(scores).items()}
    result = compute(["event_f1"], truth, TASK, predicted)["event_f1"]
    assert values_of(result["classes"])[:3] == close([expected[f"c{c}"] for c in range(3)])
    assert values_of(result["overall"]) == close([expected["macro_average"], expected["micro_average"]])


SCENARIOS = {"psds1": {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_st": 1.0},
             "psds2": {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5,
                       "alpha_st": 1.0}}


def few_errors(seed: int) -> tuple[Events, dict[str, FrameScores]]:
    """Outputs of a system with fewer than 100 false positives per hour, so that PSDS is not 0."""
    truth, scores = random_outputs(seed)
    rng = np.random.default_rng(seed)
    for filename, (times, values) in scores.items():
        active = np.zeros(values.shape, bool)
        for event in truth[filename]:
            active[grid.event_frames(event.onset, event.offset, len(active), TASK), TASK.classes.index(event.label)] = 1
        better = np.where(rng.random(active.shape) < 0.002, 0.8, 0.1 * values + 0.6 * np.roll(active, 1, axis=0))
        scores[filename] = FrameScores(times, np.round(better, 2).astype(np.float32))
    return truth, scores


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCENARIOS)
def test_psds_is_that_of_the_package_and_of_brute_force(name, seed, packages, monkeypatch):
    from sed_scores_eval import intersection_based

    monkeypatch.setattr(field_metrics, "PSDS_RESAMPLES", 20)
    truth, scores = few_errors(seed)
    overall, of_classes, *_ = intersection_based.psds(*package_inputs(scores, truth, [0, 1, 2]), **SCENARIOS[name])
    result = compute(["psds"], truth, TASK, scores=scores)[name]
    assert values_of(result["classes"]) == close([*(of_classes[f"c{c}"] for c in range(3)), None])
    assert values_of(result["overall"]) == close([overall])
    low, high = result["overall"]["overall"]["interval"]
    assert 0 <= low < high <= 1
    assert 0.02 < overall < 0.98
    assert overall == pytest.approx(brute_psds(scores, truth, TASK, score_metrics.PSDS[name]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_the_package_and_of_brute_force(seed, packages, monkeypatch):
    from sed_scores_eval import segment_based

    monkeypatch.setattr(field_metrics, "RESAMPLES", 20)
    truth, scores = random_outputs(seed)
    expected, _ = segment_based.average_precision(*package_inputs(scores, truth, [0, 1, 2]), segment_length=1.0)
    result = compute(["map"], truth, TASK, scores=scores)["map"]
    assert values_of(result["classes"]) == close([*(expected[f"c{c}"] for c in range(3)), None])
    assert values_of(result["classes"]) == close(brute_average_precision(scores, truth, TASK))
    assert result["overall"]["macro"]["value"] == pytest.approx(expected["mean"], abs=1e-9)


@pytest.mark.parametrize("name", [*SCENARIOS, "map"])
def test_a_resample_counts_as_the_data_set_with_repeated_recordings(name, packages):
    truth, scores = few_errors(0)
    metric = {"map": lambda *inputs: score_metrics.average_precision(*inputs, TASK, 1.0)}.get(
        name, lambda *inputs: score_metrics.psds(*inputs, TASK, score_metrics.PSDS[name]))
    values, resample = metric(scores, truth)
    np.testing.assert_allclose(resample(np.ones(12)), values, rtol=0, atol=1e-9)
    names = sorted(scores)
    for weights in np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=5):
        repeated = [(filename, copy) for filename, times in zip(names, weights) for copy in range(times)]
        expected, _ = metric(*({f"{filename} {copy}": side[filename] for filename, copy in repeated}
                               for side in (scores, truth)))
        np.testing.assert_allclose(resample(weights.astype(float)), expected, rtol=0, atol=1e-9)
    # A class whose recordings are not drawn is left out, as one without events is.
    only = np.array([float(all(e.label == "mean" for e in truth[filename])) for filename in names])
    truth[names[0]] = [Event(0.12, 1.2, "mean")]
    _, resample = metric(scores, truth)
    only[0] = 1
    assert np.isfinite(resample(only)).tolist() == [True, True, False, False, False]
    assert np.isnan(resample(np.zeros(12))).all()


def test_one_class_has_no_cross_triggers(packages):
    truth, scores = few_errors(1)
    truth = {filename: [event for event in events if event.label == "mean"] for filename, events in truth.items()}
    metrics = compute(["psds"], truth, TASK, scores=scores)
    assert values_of(metrics["psds2"]["classes"])[1:] == [None] * 3
    assert 0 < metrics["psds2"]["overall"]["overall"]["value"] <= 1


def test_events_after_the_scores_are_an_error(packages):
    truth, scores = random_outputs(0)
    truth["0.wav"] = [Event(500, 501, "mean")]
    with pytest.raises(UserError, match=r"'0\.wav' begins at 500"):
        compute(["map"], truth, TASK, scores=scores)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sed_scores_eval", None)
    field_metrics.require(["cost", "segment_f1", "event_f1"])
    with pytest.raises(UserError, match="'psds'.* pip install sed_scores_eval"):
        run_command(score, "--predictions", tmp_path, "--ground_truth=g.tsv", "--metrics=event_f1,psds")
    with pytest.raises(UserError, match="'map'.* pip install sed_scores_eval"):
        run_command(evaluate, "--workdir=w", "--metrics=map")
