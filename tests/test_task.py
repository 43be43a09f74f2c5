import dataclasses
import json

import numpy as np
import pytest
from tiny import TINY_TASK

from sedjax.errors import UserError
from sedjax.task import MLPC_2025, Task, read_task, task_from_json


def test_mlpc_task_is_the_one_of_the_challenge():
    assert MLPC_2025.classes == ("Speech", "Shout", "Chainsaw", "Jackhammer", "Lawn Mower", "Power Drill", "Dog Bark",
                                 "Rooster Crow", "Horn Honk", "Siren")
    by_false_alarm = {1: {"Speech", "Dog Bark", "Rooster Crow"}, 2: {"Shout"}}
    for name, (tp, fp, tn, fn) in zip(MLPC_2025.classes, MLPC_2025.costs):
        expected = next((cost for cost, names in by_false_alarm.items() if name in names), 3)
        assert (tp, fp, tn, fn) == (0, expected, 0, 5 * expected), name
    assert MLPC_2025.segment_seconds == pytest.approx(1.2)
    assert MLPC_2025.segments_per_minute == pytest.approx(50)


@pytest.mark.parametrize("task", [MLPC_2025, dataclasses.replace(TINY_TASK, frame_seconds=0.1, frames_per_segment=4)])
def test_json_round_trip(task, tmp_path):
    (tmp_path / "task.json").write_text(task.to_json())
    assert read_task(tmp_path / "task.json") == task


def test_costs_json_keeps_its_class_order_and_takes_the_name_of_its_folder(tmp_path):
    folder = tmp_path / "street"
    folder.mkdir()
    (folder / "costs.json").write_text('{"Z": {"TP": 0, "FN": 5, "FP": 1, "TN": 0}, "A": {"FP": 2, "TP": 0, "TN": 0, '
                                       '"FN": 10}}')
    task = read_task(folder / "costs.json")
    assert task == Task("street", ("Z", "A"), ((0, 1, 0, 5), (0, 2, 0, 10)))
    np.testing.assert_array_equal(task.cost_matrix, [[0, 1, 0, 5], [0, 2, 0, 10]])


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is not a task"),
    ("[1, 2]", "is not a task"),
    ("3", "is not a task"),
    ("{}", "at least one class"),
    ('{"A": 3}', "is not a task"),
    ('{"A": {"TP": 0, "FP": 1, "TN": 0}}', "class 'A' needs exactly the costs"),
    ('{"A": {"TP": 0, "FP": 1, "TN": 0, "FN": "five"}}', "is not a task"),
    ('{"A": {"TP": 0, "FP": 1, "TN": 0, "FN": NaN}}', "not a finite number"),
    ('{"A": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}, "A": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}}', "'A' is there twice"),
    ('{"onset": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}}', "class called 'onset'"),
    ('{"costs": {"A": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}}, "frame_seconds": 0}', "positive frame length"),
    ('{"costs": {"A": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}}, "frame_seconds": NaN}', "positive frame length"),
    ('{"costs": {"A": {"TP": 0, "FP": 1, "TN": 0, "FN": 5}}, "frames_per_segment": 0}', "at least one frame"),
])
def test_unusable_json_is_an_error_that_says_why(text, message):
    with pytest.raises(UserError, match=message):
        task_from_json(text, "t", "costs.json")


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json"):
        read_task(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json"):
        read_task(tmp_path / "binary.json")


@pytest.mark.parametrize(("changes", "message"), [
    ({"classes": ("Bell", "Crow", "Bell")}, "no class twice"),
    ({"classes": ()}, "at least one class"),
    ({"costs": TINY_TASK.costs[:2]}, "one cost for each"),
])
def test_impossible_tasks_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY_TASK, **changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"classes": ("Bell", "Drum", "Crow")}, "another order, from position 1: 'Drum' instead of 'Crow'"),
    ({"classes": ("Bell", "Crow", "Siren")}, r"missing \['Drum'\], unexpected \['Siren'\]"),
    ({"costs": ((0, 1, 0, 5), (0, 2, 0, 10), (0, 3, 0, 14))}, "costs of the checkpoint differ"),
    ({"frame_seconds": 0.1}, "frame_seconds of the checkpoint differ"),
    ({"frames_per_segment": 5}, "frames_per_segment of the checkpoint differ"),
])
def test_another_task_is_refused_by_its_first_difference(changes, message):
    with pytest.raises(UserError, match=message):
        TINY_TASK.require_same(dataclasses.replace(TINY_TASK, **changes), "the checkpoint")


def test_the_name_is_no_difference():
    TINY_TASK.require_same(dataclasses.replace(TINY_TASK, name="other"), "the checkpoint")


def test_to_json_is_plain_json():
    assert list(json.loads(TINY_TASK.to_json())["costs"]) == list(TINY_TASK.classes)
