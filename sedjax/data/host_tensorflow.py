"""TensorFlow, used only to read and write files: any build works, and it must not use the accelerator."""

import contextlib
import importlib.util
import os
import types

from sedjax.core.errors import UserError


def require() -> None:
    """Raises UserError if TensorFlow, or what reads and writes records with it, is not installed."""
    for name in ("tensorflow", "tensorflow_datasets", "clu"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"Records, training and evaluation need {name}, which is not installed: "
                            "pip install 'sedjax[train]'.")


def load() -> types.ModuleType:
    """Imports TensorFlow for the CPU only. Raises UserError if it is not installed.

    Call it before TensorFlow's first operation, which would take GPU memory from JAX.
    """
    require()
    # Its start-up messages are noise; it announces oneDNN, which is not used here, at any log level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # already initialized by other code, with its own choice of devices
        tf.config.set_visible_devices([], "GPU")
    return tf
