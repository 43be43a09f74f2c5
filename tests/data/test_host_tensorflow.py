"""TensorFlow: whichever there is, away from the accelerator; a sentence where there is none."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
from sedjax.data_prep.records import build

from sedjax.core.errors import UserError
from sedjax.data import host_tensorflow
from sedjax.data.batches import stream
from sedjax.data.records import open_records
from sedjax.training import metric_writer


def test_without_tensorflow_one_sentence_says_what_to_install(source, records, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for needs in (lambda: build(source, tmp_path / "records", ("mfcc",)),
                  lambda: open_records(str(records), "train"),
                  lambda: next(stream(lambda number: None, {}, 0, 1)),
                  lambda: metric_writer.MetricWriter(tmp_path, 0)):
        with pytest.raises(UserError, match=r"need tensorflow, which is not installed: pip install .sedjax\[train\]"):
            needs()
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_is_hidden_before_the_first_operation(tmp_path, monkeypatch):
    """The writer of events is what uses TensorFlow first in a training."""
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *devices: calls.append(devices))
    monkeypatch.setattr("clu.metric_writers.SummaryWriter",
                        lambda path: SimpleNamespace(close=lambda: calls.append(path)))
    metric_writer.MetricWriter(tmp_path, 0).close()
    assert calls == [([], "GPU"), str(tmp_path)]


def test_tensorflow_that_has_begun_stays_as_it_is(monkeypatch):
    def refuse(*devices):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    assert host_tensorflow.load() is tf
