"""Sound event detection in JAX: what sounds, and when."""

__version__ = "0.1.0"


def load(workdir, checkpoint="best"):
    """The trained model of a workdir, as a sedjax.predict.Detector; see sedjax.predict.load."""
    from sedjax import predict  # imports JAX, which `score` and the checks of a directory can do without

    return predict.load(workdir, checkpoint)
