"""Configs: every file builds and fits together, the small ones train a step, every mistake is named."""

import importlib
import json
import logging
import math
import os
import pathlib

import jax
import numpy as np
import pytest
from tiny import small_fields, tiny_config

from sedjax.commands.config_flag import ConfigFile
from sedjax.core import config as config_lib
from sedjax.core.errors import UserError
from sedjax.scoring.evaluator import Evaluator
from sedjax.training import experiment
from sedjax.training.configs import freeze, from_json
from sedjax.training.trainer import train

CONFIGS = [path.stem for path in sorted((pathlib.Path(__file__).parents[2] / "configs").glob("[!_]*.py"))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_its_header_gives_the_command(name):
    module = importlib.import_module(f"configs.{name}")
    config = freeze(module.get_config().to_dict())
    assert from_json(config.to_json()) == config
    assert f"--config={name}" in module.__doc__
    assert "sedjax train" in module.__doc__


def config_for(name, records, audio_records):
    """A config on tiny data, from scratch."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.path = str(audio_records if config.model.name.startswith("atst") else records)
    config.train.initial_weights = ""
    for key in ("layers", "atst_layers"):  # one is as good as twelve, and compiles sooner
        if key in config.model:
            config.model[key] = 1
    return config


SMALL_CONFIGS = [name for name in CONFIGS if name.endswith("_small") or name in ("demo", "naive")]


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(SMALL_CONFIGS)))
def test_configs_fit_together_at_their_full_size(name, records, audio_records):
    """Model, optimizer, training and evaluation, traced without computing anything."""
    config = freeze(config_for(name, records, audio_records).to_dict())
    setup = experiment.prepare(config)
    state = jax.eval_shape(setup.initial_state)
    found, scalars = jax.eval_shape(setup.step, state, setup.open_feed().read(0), jax.random.key(0))
    assert (jax.tree.structure(found), scalars.keys()) == (jax.tree.structure(state), {"loss", "gradient_norm"})
    assert jax.tree.leaves(jax.tree.map(lambda x: (x.shape, x.dtype), found)) == jax.tree.leaves(
        jax.tree.map(lambda x: (x.shape, x.dtype), state))
    evaluate = Evaluator(setup.model, config, setup.task, setup.records, setup.mesh)
    batch = evaluate.feed.read(0)
    counts = jax.eval_shape(evaluate.eval_step, state.eval_variables, batch, np.zeros((2, 3), np.float32))
    assert counts["segments"].shape == (len(batch["clip_id"]), 2, 3, 4)


SMALL = {"data.batch_size": 16, "data.eval_batch_size": 8, "data.max_frames": 40, "data.bucket_frames": 40,
         "train.duration": "1 steps"}


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_small_configs_take_a_step_on_tiny_data(name, records, audio_records, tmp_path):
    config = config_for(name, records, audio_records)
    config.update_from_flattened_dict(SMALL)
    if name == "naive":
        config.train.duration = "0 steps"
    if config.data.crop_frames:
        config.data.crop_frames = 20
    config.model.update({key: value for key, value in small_fields(config.model.name).items() if config.model.get(key)})
    progress = train(freeze(config.to_dict()), tmp_path / "run")
    assert progress.finished
    assert progress.best_cost > 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"model__name": "cnn"}, "no model 'cnn'"),
    ({"data__batch_size": 0}, "data.batch_size must be greater than or equal to 1, not 0"),
    ({"data__max_frames": "long"}, "data.max_frames must be a valid integer, not 'long'"),
    ({"loss__pos_weight": "high"}, "loss.pos_weight must be 'costs' or 'none', not 'high'"),
    ({"optimizer__accumulate": 3}, "cannot be split"),
    ({"decision__thresholds": (0.5, 1.5)}, r"decision.thresholds\[1\] must be less than or equal to 1, not 1.5"),
    ({"train__ema": 1.0}, "train.ema"),
    ({"train__duration": "long"}, "train.duration must be a duration"),
    ({"train__duration": "5"}, "train.duration must be a duration"),
    ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16'"),
    ({"parallel": "shard_map"}, "parallel must be 'jit' or 'pmap'"),
    ({"optimizer__layer_decay": 0.0, "model": "atst_frame"}, "optimizer.layer_decay must be greater than 0"),
    ({"optimizer__layer_decay": 1.1, "model": "atst_frame"}, "optimizer.layer_decay must be less than or equal to 1"),
    ({"optimizer__layer_decay": 0.8}, "optimizer.layer_decay = 0.8 .*ATST-Frame"),
    ({"optimizer__frozen": "1 epochs"}, "optimizer.frozen = '1 epochs' .*ATST-Frame"),
    ({"optimizer__frozen": "1", "model": "atst_hybrid"}, "optimizer.frozen must be a duration"),
    ({"data__placement": "disk"}, "data.placement must be 'host' or 'device'"),
    ({"train__steps_per_call": 0}, "train.steps_per_call must be greater"),
    ({"train__steps_per_call": 2}, "needs data.placement = 'device'"),
    ({"data__crop_frames": 50}, "data.crop_frames = 50 must be from 1 to data.max_frames = 40"),
    ({"data__crop_frames": -10}, "data.crop_frames must be greater than or equal to 0, not -10"),
    ({"data__crop_frames": 20, "data__placement": "device"}, "data.crop_frames = 20 needs data.placement = 'host'"),
    ({"train__mixup": -0.1}, "train.mixup must be greater"),
    ({"train__mixup": math.nan}, "train.mixup must be a finite number, not nan"),
    ({"model__heads": 0}, "model.heads must be .* 1, not 0"),
    ({"model__heads": -1}, "model.heads must be"),
    ({"model__width": 0}, "model.width must be"),
    ({"model__width": True}, "model.width must be a valid integer, not True"),
    ({"model": "conv_transformer", "model__channels": (0, 1)}, r"model.channels\[0\] must be"),
    ({"model": "conv_transformer", "model__channels": ()}, r"model.channels\[0\] is missing"),
    ({"model": "conv_transformer", "model__mfcc": (-1,)}, r"model.mfcc\[0\] must be"),
    ({"model__positions": 10**9}, "model.positions must be .* 1,000,000, not"),
    ({"model__dropout": 1}, "model.dropout must be less than 1"),
    ({"model__dropout": math.nan}, "model.dropout must be a finite number"),
    ({"model__layers": 10**6}, "model.layers must be"),
    ({"model__layers": -1}, "model.layers must be"),
    ({"model__width": 16_384, "model__layers": 50}, "model.width = 16384 .*parameters"),
    ({"model__kernels": (10**6,)}, r"model.kernels\[0\] must be"),
    ({"train__seed": -1}, "train.seed must be"),
    ({"train__seed": 2**32}, "train.seed must be less than 4,294,967,296"),
    ({"train__patience": -1}, "train.patience must be"),
    ({"train__duration": f"1{'0' * 400} steps"}, "train.duration must be a duration"),
    ({"train__duration": "1e9 steps"}, "train.duration must be a duration"),
    ({"train__duration": "3000000000 steps"}, "train.duration must be at most 2,147,483,647 steps"),
    ({"train__duration": "10 percent"}, "train.duration must be in steps, examples or epochs"),
    ({"train__evaluate_every": "0 epochs"}, "train.evaluate_every must be .* 0"),
    ({"train__save_every": "0.0 steps"}, "train.save_every must be .* 0"),
    ({"train__log_every": 3}, "train.log_every must be a valid string"),
    ({"optimizer__learning_rate": math.nan}, "optimizer.learning_rate must be a finite number, not nan"),
    ({"optimizer__learning_rate": math.inf}, "optimizer.learning_rate must be a finite number, not inf"),
    ({"optimizer__learning_rate": 0}, "optimizer.learning_rate must be greater than 0, not 0"),
    ({"optimizer__learning_rate": 10**400}, r"optimizer.learning_rate must be a valid number, not 10+\.\.\."),
    ({"optimizer__beta1": 1.0}, "optimizer.beta1 must be less than 1"),
    ({"optimizer__beta2": -0.1}, "optimizer.beta2 must be"),
    ({"optimizer__weight_decay": -0.1}, "optimizer.weight_decay must be"),
    ({"optimizer__clip_norm": -1}, "optimizer.clip_norm must be"),
    ({"loss__class_factors": {"Bell": -1}}, "loss.class_factors.Bell must be"),
    ({"decision__thresholds": ()}, "decision.thresholds must have at least 1 item"),
    ({"decision__thresholds": ("a",)}, r"decision.thresholds\[0\] must be a valid number, not 'a'"),
    ({"decision__thresholds": (math.nan,)}, r"decision.thresholds\[0\] must be a finite number, not nan"),
    ({"data__batch_size": 10**8}, "data.batch_size must be"),
    ({"data__batch_size": 10**5000}, "data.batch_size must be .*, not a very large int"),
    ({"data__path": "a\0b"}, "data.path must be"),
    ({"data": 3}, "data must be .*, not 3"),
    ({"model": "naive", "model__width": 3}, "key model.width"),
])
def test_values_that_cannot_be(changes, words):
    with pytest.raises(UserError, match=words):
        tiny_config(**changes)


@pytest.mark.parametrize(("key", "words"), [
    ({"optimizer": {"learning_rat": 1.0}}, "did you mean optimizer.learning_rate"),
    ({"model": {"name": "naive", "width": 3}}, "key model.width"),
    ({"colour": "red"}, "key colour"),
])
def test_unknown_keys_are_named(key, words):
    with pytest.raises(UserError, match=words):
        freeze({"model": {"name": "naive"}} | key)


@pytest.mark.parametrize(("text", "steps"), [
    ("7 steps", 7), ("1 step", 1), ("65 examples", 3), ("2 epochs", 20), ("0.25 epochs", 3), ("10 percent", 5),
    ("0 steps", 0),
])
def test_durations(text, steps):
    assert config_lib.steps(text, "train.duration", batch_size=32, steps_per_epoch=10, total_steps=50) == steps


def test_a_duration_of_more_steps_than_can_be_counted():
    with pytest.raises(UserError, match=r"train\.duration must be at most 2,147,483,647 steps, not 3,000,000,000"):
        config_lib.steps("3 epochs", "train.duration", 32, 10**9, 0)


def test_values_that_mean_the_same_are_the_same_config():
    one = tiny_config(train__duration="3 epoch", train__save_every="5%", optimizer__warmup=".50 epochs",
                      optimizer__learning_rate=1, decision__thresholds=[0.9, 0.5, 0.5])
    other = tiny_config(train__duration="3.0 epochs", train__save_every="5 percent", optimizer__warmup="0.5 epochs",
                        optimizer__learning_rate=1.0, decision__thresholds=(0.5, 0.9))
    assert one == other
    assert one.train.duration == "3 epochs"
    assert one.decision.thresholds == (0.5, 0.9)


def test_the_config_of_an_old_workdir_is_read(caplog, monkeypatch):
    old = json.loads(tiny_config().to_json())
    old["train"] |= {"patience": -1, "evaluate_every": "0 epochs"}
    old["optimizer"] |= {"beta1": 2}
    old["decision"]["thresholds"] = [0.7, 0.2]
    monkeypatch.setattr(logging.getLogger("sedjax"), "propagate", True)
    config = from_json(json.dumps(old))
    assert (config.train, config.optimizer) == (tiny_config(train__evaluate_every="1 epochs").train,
                                                tiny_config(optimizer__beta1=0.9).optimizer)
    assert config.decision.thresholds == (0.2, 0.7)
    assert "train.patience = -1" in caplog.text
    for text, words in (("[" * 10**5, "damaged"), ("{}", "model is missing"), ('{"model": {"name": "cnn"}}', "'cnn'"),
                        (config.to_json().replace('"layers": 1', '"layers": -1'), "model.layers"),
                        (config.to_json().replace('"patience": 10', '"patience": "10"'), "train.patience")):
        with pytest.raises(UserError, match=f"w/config.json.*{words}"):
            from_json(text, "w/config.json")


CONFIG_FILES = {
    "syntax": ("def get_config(:\n", "line 1, .*SyntaxError"),
    "raises": ("\n1 / 0\n", "line 2, .*ZeroDivisionError"),
    "neighbour": ("import neighbour_that_is_not_there\n", "line 1, .*No module named 'neighbour_that_is_not_there'"),
    "empty": ("", "no function get_config"),
    "not callable": ("get_config = 3", "no function get_config"),
    "dict": ("def get_config():\n  return {'a': 1}", "must return a ConfigDict.*{'a': 1}"),
    "none": ("def get_config():\n  pass", "must return a ConfigDict.*None"),
    "exit": ("import sys\nsys.exit(0)", "line 2, .*SystemExit"),
    "endless": ("def get_config():\n  return get_config()", "RecursionError"),
    "binary": (b"\xff\xfe\0\1", "not UTF-8"),
    "zero": ("x = '\0'", "null bytes"),
    "file": ("open('/nowhere')", "line 1, .*/nowhere"),
    "lines": ("def get_config():\n  raise ValueError('a\\nb\\x1b[31m')", "line 2, .*ValueError: a b"),
    "model": ("from sedjax.training.configs import base_config\ndef get_config():\n  return base_config('cnn')",
              "'cnn'"),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_config_files_that_cannot_be_used(name, tmp_path):
    path = tmp_path / f"{name}.py"
    content, words = CONFIG_FILES[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{name}.py.*{words}") as error:
        ConfigFile().parse(str(path))
    assert "\n" not in str(error.value)


def test_configs_that_came_with_sedjax_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ConfigFile().parse("configs/naive.py").model.name == "naive"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "naive.py").write_text("def get_config():\n  raise ValueError('mine')")
    with pytest.raises(UserError, match="mine"):
        ConfigFile().parse("configs/naive.py")


def test_config_files_that_are_not_files_and_arguments_that_are_not_known(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, words in ((tmp_path, "not a regular file"), (tmp_path / "fifo", "not a regular file"),
                        ("/dev/zero", "not a regular file"), ("configs/none.py", "no file configs/none.py"),
                        ("", "--config is given without a value"),
                        ("configs/naive.py:x", "configs/naive.py.* takes 0 positional arguments"),
                        ("configs/demo.py:x", "configs/demo.py.*MODEL"),
                        ("configs/sweeps/report.py:tiny", "report.py.*'tiny'")):
        with pytest.raises(UserError, match=words):
            ConfigFile().parse(str(path))


def test_a_config_by_name_where_a_folder_has_that_name(tmp_path, monkeypatch):
    (tmp_path / "naive").mkdir()
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("naive", "configs/naive.py", "configs/naive"):
        assert ConfigFile().parse(name).model.name == "naive"
    assert ConfigFile().parse("sweeps/report:small").systems.naive
    (tmp_path / "naive.py").write_text("from sedjax.configs import demo\n"
                                        "def get_config():\n  return demo.get_config('conv_transformer')\n")
    assert ConfigFile().parse("naive.py").model.name == "conv_transformer"
    with pytest.raises(UserError, match=r"naiv.*did you mean naive\?"):
        ConfigFile().parse("naiv")
