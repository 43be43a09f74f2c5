"""What has been extracted from which recordings, so that work that was cut off goes on where it was."""

import json
import os
import pathlib
from collections.abc import Iterator

from sedjax.files import atomic_output


class Journal:
    """One line of JSON for each recording whose features file is whole, written after that file.

    A line vouches for the features file of the given size that was made of the recording of the given size and time.
    Workers cannot write to one file together: each has a file of its own beside the journal, which takes them in.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        lines = read_lines(path) if path.exists() else []
        workers = worker_files(path)
        for each in workers:  # of a run that was killed
            lines += read_lines(each)
        self._entries = {line["filename"]: line for line in lines if line.keys() == _KEYS}
        # Without the half lines, to which the next line would be added.
        with atomic_output(path, ours=True) as temporary:
            temporary.write_text("".join(map(_line, self._entries.values())), encoding="utf-8")
        for each in workers:
            each.unlink(missing_ok=True)

    def entry(self, recording: pathlib.Path, features: pathlib.Path) -> dict | None:
        """The line of a recording, None unless it and its features file are still there as they were noted."""
        found = self.vouches(recording.name, features)
        try:
            return found if found and recording_state(recording).items() <= found.items() else None
        except OSError:
            return None

    def vouches(self, filename: str, features: pathlib.Path) -> dict | None:
        """The line of a recording of that name, whatever it is now, None unless its features file was noted."""
        found = self._entries.get(filename)
        is_noted = found and features.exists() and features.stat().st_size == found["features_bytes"]
        return found if is_noted else None

    def kept(self, recording: pathlib.Path, features: pathlib.Path) -> dict[str, str] | None:
        """With which parameters the features were made that a features file may keep, as far as they are known.

        None if it was made of what the recording no longer is, or has been spoilt since: then it may keep nothing.
        """
        if recording.name not in self._entries:
            return {}
        found = self.entry(recording, features)
        return found and found["parameters"]

    def note(self, entry: dict) -> None:
        """Adds a line, from `entry`."""
        self._entries[entry["filename"]] = entry
        append_line(self.path, entry)


def entry(recording: pathlib.Path, state: dict, features: pathlib.Path, seconds: float,
          parameters: dict[str, str]) -> dict:
    """The line which says that `features` holds the keys of `parameters`, each made with its value.

    `state` is that of the recording before it was read: if it has changed since, it is not done.
    """
    return {"filename": recording.name, **state, "features_bytes": features.stat().st_size, "seconds": seconds,
            "parameters": parameters}


def recording_state(recording: pathlib.Path) -> dict:
    """Size and time of a recording, by which a change is told."""
    stat = os.stat(recording)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def worker_file(path: pathlib.Path, worker: str) -> pathlib.Path:
    """Where a worker notes what it has done for the journal at `path`."""
    return path.with_name(f".{path.stem}.{worker}{path.suffix}")


def worker_files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.parent.glob(worker_file(path, "*").name))


def append_line(path: pathlib.Path, entry: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(_line(entry))


def read_lines(path: pathlib.Path) -> list[dict]:
    """The whole lines of a file."""
    return list(_whole_lines(path.read_text(encoding="utf-8", errors="replace")))


def _whole_lines(text: str) -> Iterator[dict]:
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # the end of a line that a kill cut off
            continue
        if isinstance(found, dict):
            yield found


_KEYS = {"filename", "bytes", "mtime_ns", "features_bytes", "seconds", "parameters"}


def _line(entry: dict) -> str:
    return json.dumps(entry) + "\n"
