import dataclasses
import json

import numpy as np
import pytest
from tiny import TINY_TASK

from sedjax.core.errors import UserError
from sedjax.core.task import MLPC_2025, Task, task_from_json
from sedjax.data.layout import read_task


def test_mlpc_task_is_the_one_of_the_challenge():
    assert MLPC_2025.classes == ("Speech", "Shout", "Chainsaw", "Jackhammer", "Lawn Mower", "Power Drill", "Dog Bark",
                                 "Rooster Crow", "Horn Honk", "Siren")
    by_false_alarm = {1: {"Speech", "Dog Bark", "Rooster Crow"}, 2: {"Shout"}}
    for name, (tp, fp, tn, fn) in zip(MLPC_2025.classes, MLPC_2025.costs):
        expected = next((cost for cost, names in by_false_alarm.items() if name in names), 3)
        assert (tp, fp, tn, fn) == (0, expected, 0, 5 * expected), name
    assert MLPC_2025.segment_seconds == pytest.approx(1.2)
    assert MLPC_2025.segments_per_minute == pytest.approx(50)


ODD_NAMES = Task("odd", ('a,"b', "ک\u200cب", "x.npy", " ", "costs"), ((0, 1.5, -1, 5),) * 5)


@pytest.mark.parametrize("task", [MLPC_2025, ODD_NAMES,
                                  dataclasses.replace(TINY_TASK, frame_seconds=0.1, frames_per_segment=4)])
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


ROW = '{"TP": 0, "FP": 1, "TN": 0, "FN": 5}'


def with_field(key, value):
    return f'{{"costs": {{"A": {ROW}}}, "{key}": {value}}}'


def with_cost(value):
    return f'{{"A": {{"TP": 0, "FP": 1, "TN": 0, "FN": {value}}}}}'


def with_class(name):
    return f'{{"{name}": {ROW}}}'


@pytest.mark.parametrize(("text", "message"), [
    ("{", "damaged"),
    ("[1, 2]", "damaged"),
    ("3", "damaged"),
    ("[" * 10**5, "damaged"),
    ('{"a": ' * 10**5, "damaged"),
    ("{}", "classes must have at least 1 item"),
    ('{"costs": {}}', "classes must have at least 1 item"),
    ('{"A": 3}', "expected"),
    ('{"A": []}', "expected"),
    ('{"A": {"TP": 0, "FP": 1, "TN": 0}}', "class 'A': FN is missing"),
    ('{"A": {"TP": 0, "FP": 1, "TN": 0, "FNN": 5}}', "class 'A': FNN; did you mean class 'A': FN?"),
    ('{"A": {"TP": 0, "TP": 1, "FP": 1, "TN": 0, "FN": 5}}', "'TP' is listed twice"),
    (f'{{"A": {ROW}, "A": {ROW}}}', "'A' is listed twice"),
    (with_cost('"5"'), "FN must be a valid number, not '5'"),
    (with_cost("true"), "FN must be a valid number, not True"),
    (with_cost("NaN"), "FN must be a finite number, not nan"),
    (with_cost("-Infinity"), "FN must be a finite number, not -inf"),
    (with_cost("1e400"), "FN must be a finite number, not inf"),
    (with_cost(10**400), "FN must be a valid number"),
    (with_cost("1" + "0" * 6000), "damaged"),
    (with_cost("1e300"), "FN must be less than"),
    (with_class("onset"), "class name 'onset'"),
    (with_class(""), r"classes\[0\] must have at least 1 character"),
    (with_class("a\\tb"), r"classes\[0\] must not contain"),
    (with_class("a\\nb"), r"classes\[0\] must not contain"),
    (with_class("\\u001b[31m"), r"classes\[0\] must not contain"),
    (with_class("\\u2028"), r"classes\[0\] must not contain"),
    (with_class("\\ud800"), "damaged"),
    (with_class("x" * 10**6), r"classes\[0\] must have at most 200 characters, not .x{79}[^x]*$"),
    ("{" + ", ".join(f'"{i}": {ROW}' for i in range(20_001)) + "}", "classes must have at most 20,000 items"),
    (with_field("frame_seconds", 0), "frame_seconds must be greater"),
    (with_field("frame_seconds", "NaN"), "frame_seconds must be a finite number"),
    (with_field("frame_seconds", "1e-9"), "frame_seconds must be greater"),
    (with_field("frame_seconds", "1e9"), "frame_seconds must be less"),
    (with_field("frame_seconds", '"0.12"'), "frame_seconds must be a valid number"),
    (with_field("frames_per_segment", 0), "frames_per_segment must be greater"),
    (with_field("frames_per_segment", 10**9), "frames_per_segment must be less"),
    (with_field("frames_per_segment", "Infinity"), "frames_per_segment must be a valid integer"),
    (with_field("frames_per_segment", "1.5"), "frames_per_segment must be a valid integer"),
    (with_field("frames_per_segment", "true"), "frames_per_segment must be a valid integer"),
    (with_field("name", 3), "name must be a valid string"),
    (with_field("classes", "[]"), "key classes"),
], ids=lambda text: text[:40])
def test_unusable_json_is_an_error_that_says_why(text, message):
    with pytest.raises(UserError, match=rf"^costs\.json.*{message}") as error:
        task_from_json(text, "t", "costs.json")
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json"):
        read_task(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.json"):
        read_task(tmp_path / "binary.json")


@pytest.mark.parametrize(("changes", "message"), [
    ({"classes": ("Bell", "Crow", "Bell")}, "'Bell' is listed twice"),
    ({"classes": ()}, "classes must have at least 1"),
    ({"costs": TINY_TASK.costs[:2]}, "3 classes, .* 2"),
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
