"""Configs: every file builds and fits together, the small ones train a step, every mistake is named."""

import importlib
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import small_fields, tiny_config

from sedjax import config as config_lib
from sedjax import experiment
from sedjax.errors import UserError
from sedjax.evaluate import Evaluator
from sedjax.train import train

CONFIGS = [path.stem for path in sorted((pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_its_header_gives_the_command(name):
    module = importlib.import_module(f"configs.{name}")
    config = config_lib.freeze(module.get_config().to_dict())
    assert config_lib.from_json(config.to_json()) == config
    assert f"--config=configs/{name}.py" in module.__doc__
    assert "python -m sedjax train" in module.__doc__


def config_for(name, records, audio_records):
    """A config on tiny data, from scratch."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.path = str(audio_records if config.model.name.startswith("atst") else records)
    config.train.initial_weights = ""
    return config


SMALL_CONFIGS = [name for name in CONFIGS if name.endswith("_small") or name in ("demo", "naive")]


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(SMALL_CONFIGS)))
def test_configs_fit_together_at_their_full_size(name, records, audio_records):
    """Model, optimizer, training and evaluation, traced without computing anything."""
    config = config_lib.freeze(config_for(name, records, audio_records).to_dict())
    setup = experiment.prepare(config)
    state = jax.eval_shape(setup.initial_state)
    found, scalars = jax.eval_shape(setup.step(config.optimizer.accumulate), state, setup.read(0), jax.random.key(0))
    assert (jax.tree.structure(found), scalars.keys()) == (jax.tree.structure(state), {"loss", "gradient_norm"})
    assert jax.tree.leaves(jax.tree.map(lambda x: (x.shape, x.dtype), found)) == jax.tree.leaves(
        jax.tree.map(lambda x: (x.shape, x.dtype), state))
    evaluate = Evaluator(setup.model, config, setup.task, setup.records, setup.mesh)
    counts = jax.eval_shape(evaluate.eval_step, state.weights, evaluate.read(0), np.zeros((2, 3), np.float32))
    assert counts["segments"].shape == (evaluate.plan.shape[1], 2, 3, 4)


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
    progress = train(config_lib.freeze(config.to_dict()), tmp_path / "run")
    assert progress.finished
    assert progress.best_cost > 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"model__name": "cnn"}, "no model 'cnn'"),
    ({"data__batch_size": 0}, "data.batch_size must be positive"),
    ({"data__max_frames": "long"}, "data.max_frames must be of type int"),
    ({"loss__pos_weight": "high"}, "loss.pos_weight must be one of"),
    ({"optimizer__accumulate": 3}, "cannot be split"),
    ({"decision__thresholds": (1.5,)}, "numbers from 0 to 1"),
    ({"train__ema": 1.0}, "train.ema"),
    ({"train__duration": "long"}, "train.duration must be a duration"),
    ({"train__duration": "5"}, "train.duration must be a duration"),
    ({"precision": "float16"}, "precision must be one of"),
    ({"parallel": "shard_map"}, "parallel must be one of"),
    ({"optimizer__layer_decay": 0.0, "model": "atst_frame"}, "optimizer.layer_decay must be above 0 and at most 1"),
    ({"optimizer__layer_decay": 1.1, "model": "atst_frame"}, "optimizer.layer_decay must be above 0 and at most 1"),
    ({"optimizer__layer_decay": 0.8}, "optimizer.layer_decay = 0.8 is for models with ATST-Frame"),
    ({"optimizer__frozen": "1 epochs"}, "optimizer.frozen = '1 epochs' is for models with ATST-Frame"),
    ({"optimizer__frozen": "1", "model": "atst_hybrid"}, "optimizer.frozen must be a duration"),
    ({"data__placement": "disk"}, "data.placement must be one of"),
    ({"train__steps_per_call": 0}, "train.steps_per_call must be positive"),
    ({"train__steps_per_call": 2}, "needs data.placement = 'device'"),
    ({"data__crop_frames": 50}, "data.crop_frames = 50 must be from 1 to data.max_frames = 40"),
    ({"data__crop_frames": -10}, "data.crop_frames = -10 must be"),
    ({"data__crop_frames": 20, "data__placement": "device"}, "data.crop_frames = 20 needs data.placement = 'host'"),
    ({"train__mixup": -0.1}, "train.mixup must be at least 0"),
    ({"train__mixup": float("nan")}, "train.mixup must be at least 0"),
])
def test_values_that_cannot_be(changes, words):
    with pytest.raises(UserError, match=words):
        tiny_config(**changes)


@pytest.mark.parametrize(("key", "words"), [
    ({"optimizer": {"learning_rat": 1.0}}, "did you mean optimizer.learning_rate"),
    ({"model": {"name": "naive", "width": 3}}, "no config key model.width"),
    ({"colour": "red"}, "no config key colour"),
])
def test_unknown_keys_are_named(key, words):
    with pytest.raises(UserError, match=words):
        config_lib.freeze({"model": {"name": "naive"}} | key)


@pytest.mark.parametrize(("text", "steps"), [
    ("7 steps", 7), ("1 step", 1), ("65 examples", 3), ("2 epochs", 20), ("0.25 epochs", 3), ("10 percent", 5),
    ("0 steps", 0),
])
def test_durations(text, steps):
    assert config_lib.steps(text, "train.duration", batch_size=32, steps_per_epoch=10, total_steps=50) == steps


def test_the_whole_duration_cannot_be_a_share_of_itself():
    with pytest.raises(UserError, match=r"train\.duration"):
        config_lib.steps("10 percent", "train.duration", 32, 10, 0)


@pytest.mark.parametrize(("flag", "words"), [
    ("--config.optimizer.learning_rat=1", "learning_rat"),
    ("--config=configs/none.py", "configs/none.py"),
    ("--speed=3", "speed"),
    ("--config.data.batch_size=many", "batch_size"),
])
def test_mistakes_on_the_command_line_are_one_sentence(flag, words, tmp_path):
    arguments = [] if flag.startswith("--config=") else ["--config=configs/naive.py"]
    result = subprocess.run([sys.executable, "-m", "sedjax", "train", *arguments, flag, f"--workdir={tmp_path / 'w'}"],
                            capture_output=True, text=True)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()
