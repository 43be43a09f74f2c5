"""Runs the quickstart in environments like Colab's runtimes: `python3.13 tests/colab_runtimes.py [gpu] [tpu]`.

Creates a virtual environment with Colab's packages for each runtime, lets the notebook's first cells install sedjax
into it, and runs the others with tiny settings. There is no GPU or TPU, only the signs by which the cells detect one,
so they must notice that JAX does not see it.
"""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
# From Colab's published lists; numpy is the oldest version for Python 3.13.
BOTH = ("absl-py==1.4.0", "flax==0.11.2", "ipython==7.34.0", "jax==0.7.2", "jaxlib==0.7.2", "librosa==0.11.0",
        "matplotlib==3.10.0", "ml_dtypes==0.5.4", "numba==0.61.2", "numpy==2.1.0", "optax==0.2.8",
        "orbax-checkpoint==0.12.0", "protobuf==5.29.6", "pydantic==2.12.3", "scikit-learn==1.6.1", "scipy==1.16.3",
        "setuptools==75.2.0", "soundfile==0.13.1", "soxr==1.1.0")
RUNTIMES = {
    "gpu": (*BOTH, "h5py==3.16.0", "jax-cuda12-pjrt==0.7.2", "jax-cuda12-plugin[with-cuda]==0.7.2", "keras==3.13.2",
            "nvidia-cublas-cu12==12.8.4.1", "nvidia-cuda-cupti-cu12==12.8.90", "nvidia-cuda-nvcc-cu12==12.8.93",
            "nvidia-cuda-nvrtc-cu12==12.8.93", "nvidia-cuda-runtime-cu12==12.8.90", "nvidia-cudnn-cu12==9.19.0.56",
            "nvidia-cufft-cu12==11.3.3.83", "nvidia-cusolver-cu12==11.7.3.90", "nvidia-cusparse-cu12==12.5.8.93",
            "nvidia-nccl-cu12==2.28.9", "nvidia-nvjitlink-cu12==12.8.93", "nvidia-nvshmem-cu12==3.4.5",
            "tensorboard==2.20.0", "tensorflow==2.20.0", "tensorflow-datasets==4.9.10", "tensorflow-metadata==1.17.3"),
    "tpu": (*BOTH, "libtpu==0.0.21.1"),
}
SHOWN = ("flax", "jax", "libtpu", "numpy", "nvidia", "tensorflow")  # even if unchanged
SETTINGS = "\nRECORDINGS, EPOCHS = 10, 1\n"
NVIDIA_SMI = '#!/bin/sh\necho "GPU 0: Tesla T4 (UUID: GPU-0)"\n'


def main() -> None:
    for name in sys.argv[1:] or RUNTIMES:
        with tempfile.TemporaryDirectory() as folder:
            try_runtime(name, pathlib.Path(folder))


def try_runtime(name: str, folder: pathlib.Path) -> None:
    """Raises AssertionError or CalledProcessError if the notebook misbehaves in a runtime."""
    environment, python = folder / "environment", folder / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *RUNTIMES[name]], check=True)
    before = versions(environment)
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "demo")
    shutil.copytree(ROOT, folder / "clone", ignore=ignored)
    cells = ["".join(cell["source"]) + SETTINGS * ("parameters" in cell["metadata"].get("tags", ()))
             for cell in json.loads((ROOT / "colab" / "quickstart.ipynb").read_text())["cells"]
             if cell["cell_type"] == "code"]
    (folder / "clone" / "colab" / "quickstart.ipy").write_text("\n".join(cells))
    # JAX_PLATFORMS stays unset: JAX must look for the accelerator and continue without one.
    variables = {key: value for key, value in os.environ.items() if key not in ("JAX_PLATFORMS", "PYTHONPATH")}
    if name == "gpu":
        (folder / "bin").mkdir()
        (folder / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
        (folder / "bin" / "nvidia-smi").chmod(0o755)
        variables["PATH"] = f"{folder / 'bin'}:{variables['PATH']}"
    else:
        variables |= {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_SKIP_MDS_QUERY": "1"}
    shown = subprocess.run([python, "-m", "IPython", "--colors=NoColor", "quickstart.ipy"], text=True, env=variables,
                           cwd=folder / "clone" / "colab", stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    print(f"\n{name}: what the notebook shows\n\n{shown}")
    after = versions(environment)
    print(f"{name}: {'package':32}{'before':16}after")
    for package in sorted(before.keys() | after.keys(), key=str.lower):
        changed = before.get(package) != after.get(package)
        if changed or package.startswith(SHOWN):
            print(f"     {'*' if changed else ' '} {package:30}{before.get(package, '-'):16}{after.get(package, '-')}")
    print(f"\n{name}: pip check")
    subprocess.run([python, "-m", "pip", "check"])
    for words in ("JAX sees 1 x CPU.", "but JAX computes on the CPU", "validation cost", "95 % interval",
                  "events in 1 recordings"):
        assert words in shown, words
    if name == "gpu":
        assert after["jaxlib"] == after["jax-cuda12-plugin"] == after["jax-cuda12-pjrt"]
        assert after["tensorflow"] == before["tensorflow"]
        assert "tensorflow-cpu" not in after
    else:
        needed = importlib.metadata.Distribution.at(next(environment.glob(
            f"lib/*/site-packages/jax-{after['jax']}.dist-info"))).requires
        assert any(line.startswith(f"libtpu=={after['libtpu']}".rstrip("0123456789")) for line in needed), needed
        assert "tensorflow" not in after
        assert "tensorflow-cpu" in after


def versions(environment: pathlib.Path) -> dict[str, str]:
    """Versions of the packages in a virtual environment, by name as pip writes it, with - for _."""
    site = next(environment.glob("lib/*/site-packages"))
    return {package.name.replace("_", "-"): package.version
            for package in importlib.metadata.distributions(path=[str(site)])}


if __name__ == "__main__":
    main()
