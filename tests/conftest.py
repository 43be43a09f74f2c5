"""Eight devices on one CPU; shapes in annotations are checked; implicit broadcasting and warnings are errors."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling: with these emitters, in one module, it takes a third.
os.environ["XLA_FLAGS"] = ("--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false "
                           "--xla_cpu_parallel_codegen_split_count=1")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # a test must not leave files in the home directory

import logging

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
install_import_hook("sedjax", "typecheck.checked")
# How fast a busy machine draws is no property of the code.
settings.register_profile("sedjax", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sedjax")

# Each file is run by one process (see Makefile), so that its fixtures are made once: the longest files come first.
LONGEST = ("test_hostile", "test_survival", "test_parallel", "test_config", "test_sweep", "test_predict", "test_bench",
           "test_atst_frame", "test_extract", "test_trainer", "test_resident", "test_notebook", "test_models",
           "test_train_step", "test_documents")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def loggers():
    """What a command sets up for its process is undone for the next tests."""
    before = [(logger, list(logger.handlers), logger.level, logger.propagate)
              for logger in map(logging.getLogger, ("sedjax", "data_prep"))]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A directory in MLPC layout: 24 recordings of 11 to 40 frames, 3 classes."""
    from tiny import write_layout  # not earlier: it imports sedjax, which must come after the hook

    path = tmp_path_factory.mktemp("source")
    write_layout(path, recordings=24, splits=True)
    return path


@pytest.fixture(scope="session")
def records(source, tmp_path_factory):
    """The records of `source`."""
    from sedjax.data_prep.records import build

    path = tmp_path_factory.mktemp("records") / "tiny"
    build(source, path, ("embeddings", "melspectrogram", "mfcc"))
    return path


@pytest.fixture(scope="session")
def audio_records(tmp_path_factory):
    """Records of ten recordings of noise, 11 to 20 frames long."""
    from recordings import write_recordings
    from sedjax.data_prep.records import build

    path = tmp_path_factory.mktemp("recordings")
    write_recordings(path / "source", {f"{i}.wav": 11 + i for i in range(10)}, splits=True)
    build(path / "source", path / "tiny", ("audio",))
    return path / "tiny"
