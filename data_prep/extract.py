"""`python -m data_prep.extract`: adds features to a directory in MLPC layout (SPEC section 3).

`--embeddings_from` names a trained sedjax model, whose last layer before the head becomes the feature `embeddings`.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from sedjax import commands
from sedjax.layout import Layout, read_layout


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Directory in MLPC layout, with the features that the extractor needs.",
                        required=True)
    flags.DEFINE_string("embeddings_from", None, "Workdir of the trained model that is the extractor.", required=True)


def main(argv: Sequence[str]) -> None:
    commands.require_no_arguments(argv)
    from sedjax.input_pipeline import Features  # imports JAX, which the functions above do not need
    from sedjax.predict import load

    options = flags.FLAGS
    layout, detector = read_layout(options.source), load(options.embeddings_from)
    frames = detector.embed(Features.of(layout, detector.task, detector.model.features, detector.widths))
    for filename, value in zip(tqdm(layout.filenames, "writing", disable=None), frames):
        add_features(layout, filename, {"embeddings": value.astype(np.float16)})
    print(f"Wrote embeddings of {len(frames):,} recordings, {frames[0].shape[1]} wide, to {layout.path}.")


def add_features(layout: Layout, filename: str, features: dict[str, np.ndarray]) -> None:
    """Adds features to the file of a recording, in place of those with the same names, all of them or none."""
    path = layout.features_path(filename)
    with np.load(path, allow_pickle=False) as archive:
        everything = {**archive, **features}
    with commands.atomic_output(path) as temporary:
        np.savez(temporary, **everything)


if __name__ == "__main__":
    define_flags()
    commands.run(main)
