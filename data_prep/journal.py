"""What has been extracted from which recordings, so that an interrupted extraction resumes."""

import json
import os
import pathlib
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic takes that of typing from Python 3.12 on
)

import pydantic
from typing_extensions import TypedDict

from sedjax.core import files, npz
from sedjax.core.errors import UserError


class Entry(TypedDict):
    """A line of the journal: see `entry`."""

    filename: str
    bytes: int
    mtime_ns: int
    features_bytes: int
    features_checksum: NotRequired[int]  # not in lines of older versions
    seconds: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
    parameters: dict[str, str]


class Bad(TypedDict):
    """A recording of which there are no features, and why."""

    filename: str
    reason: str


class Journal:
    """One line of JSON for each recording whose features file is whole, written after that file.

    A line vouches for the features file of the given size and checksum, made of the recording of the given size and
    time.
    Workers cannot write to one file together: each has a file of its own beside the journal, which takes them in.
    """

    def __init__(self, path: pathlib.Path):
        """Raises UserError if the file at `path` is something else."""
        self.path = path
        lines = files.read_json_lines(path, Entry)
        if not lines and os.path.exists(path):
            with files.open_file(path) as file:
                if not _FIRST.startswith(file.read(len(_FIRST))):
                    raise UserError(f"{path} is not the journal of this command: move it away, or choose another "
                                    "--output.")
        workers = worker_files(path)
        for each in workers:  # of a run that was killed
            lines += files.read_json_lines(each, Entry)
        self._entries = {line["filename"]: line for line in lines}
        # Without the half lines, to which the next line would be added.
        with files.atomic_output(path, ours=True) as temporary:
            temporary.write_text("".join(map(_line, self._entries.values())), encoding="utf-8")
        for each in workers:
            each.unlink(missing_ok=True)

    def entry(self, recording: pathlib.Path, features: pathlib.Path) -> Entry | None:
        """The line of a recording, None unless it and its features file are still there as they were noted."""
        found = self.vouches(recording.name, features)
        try:
            return found if found and recording_state(recording).items() <= found.items() else None
        except OSError:
            return None

    def vouches(self, filename: str, features: pathlib.Path) -> Entry | None:
        """The line of a recording of that name, whatever it is now, None unless its features file was noted."""
        found = self.noted(filename)
        try:
            if not found or features.stat().st_size != found["features_bytes"]:
                return None
            same = found.get("features_checksum") in (None, npz.npz_checksum(features))
            return found if same else None
        except (OSError, UserError):
            return None

    def noted(self, filename: str) -> Entry | None:
        """The line of a recording of that name, whatever it and its features file are now."""
        return self._entries.get(filename)

    def note(self, entry: Entry) -> None:
        """Adds a line, from `entry`."""
        self._entries[entry["filename"]] = entry
        append_line(self.path, entry)


def entry(recording: pathlib.Path, state: dict[str, int], features: pathlib.Path, seconds: float,
          parameters: dict[str, str]) -> Entry:
    """The line which says that `features` holds the keys of `parameters`, each made with its value.

    `state` is that of the recording before it was read: if it has changed since, it is not done.
    """
    return {"filename": recording.name, **state, **features_state(features), "seconds": seconds,
            "parameters": parameters}


def features_state(features: pathlib.Path) -> dict[str, int]:
    """Size and checksum of a features file, by which a change is told."""
    return {"features_bytes": features.stat().st_size, "features_checksum": npz.npz_checksum(features)}


def recording_state(recording: pathlib.Path) -> dict[str, int]:
    """Size and time of a recording, by which a change is told."""
    stat = os.stat(recording)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def worker_file(path: pathlib.Path, worker: str) -> pathlib.Path:
    """Where a worker notes what it has done for the journal at `path`."""
    return path.with_name(f"{files.TEMPORARY}{path.stem}.{worker}{path.suffix}")


def worker_files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.parent.glob(worker_file(path, "*").name))


def append_line(path: pathlib.Path, entry: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(_line(entry))


_FIRST = b'{"filename": '  # so each line begins


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
