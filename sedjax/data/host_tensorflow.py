"""TensorFlow, which reads and writes files here: any build of it will do, and none may take the accelerator."""

import contextlib
import importlib.util
import os
import types

from sedjax.core.errors import UserError


def require() -> None:
    """Raises UserError if TensorFlow is not installed."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("Records, training and evaluation need TensorFlow, which is not installed: "
                        "pip install tensorflow-cpu.")


def load() -> types.ModuleType:
    """The module, on the CPU alone. Raises UserError if it is not installed.

    It must come before TensorFlow's first operation, which would take the memory of a GPU from JAX.
    """
    require()
    # Its start-up notes are noise; it announces oneDNN, which nothing here uses, at any level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # somebody else has used it already, with the devices of their choice
        tf.config.set_visible_devices([], "GPU")
    return tf
