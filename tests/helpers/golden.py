"""Inputs and weights of the golden numbers."""

import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "golden"


def reference_waveform() -> np.ndarray:
    """That of SPEC section 7."""
    n = np.arange(160000)
    sound = 0.1 * np.random.default_rng(0).standard_normal(160000) * np.linspace(0, 1, 160000)
    return (sound + 0.3 * np.sin(2 * np.pi * 440 * n / 16000)).astype(np.float32)


def read_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def reference_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight that SPEC section 7 prescribes for a state-dict key."""
    w = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) == 4:
        return (np.sqrt(2 / np.prod(shape[1:])) * w).astype(np.float32)
    w = (0.02 * w).astype(np.float32)
    if key.endswith("running_var"):
        return 1 + np.abs(w)
    return 1 + w if len(shape) == 1 and key.endswith("weight") else w


def reference_tensors(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights for the keys and shapes in a file of golden numbers."""
    shapes = [tuple(map(int, str(shape).strip("()").rstrip(",").split(","))) for shape in golden["shapes"]]
    return {str(key): reference_tensor(str(key), shape) for key, shape in zip(golden["keys"], shapes)}
