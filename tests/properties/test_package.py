"""What an installation holds."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[2]


def test_everything_is_installed_inside_one_package():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {package: tool["package-dir"].get(package) for package in tool["packages"]}
    for package, place in places.items():
        parent, _, name = package.rpartition(".")
        places[package] = place or f"{places[parent]}/{name}"
    assert all(package.split(".")[0] == "sedjax" for package in places)
    folders = {path.parent.relative_to(ROOT).as_posix() for top in ("sedjax", "configs", "data_prep")
               for path in (ROOT / top).rglob("*.py")}
    assert set(places.values()) == folders
