"""Sound event detection in JAX: what sounds, and when."""

__version__ = "0.1.0"


def load(workdir, checkpoint="best", embeddings_from=None):
    """The trained model of a workdir, as a sedjax.detector.Detector; see sedjax.detector.load.

        for onset, offset, label, score in sedjax.load("WORKDIR")("street.mp3"):
    """
    from sedjax import detector  # imports JAX, which `score` and the checks of a directory can do without

    return detector.load(workdir, checkpoint, embeddings_from)
