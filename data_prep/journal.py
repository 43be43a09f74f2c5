"""What has been extracted from which recordings, so that work that was cut off goes on where it was."""

import json
import os
import pathlib

from sedjax.commands import atomic_output


class Journal:
    """One line of JSON for each recording whose features file is whole, written after that file.

    A line vouches for the features file of the given size that was made of the recording of the given size and time.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._entries: dict[str, dict] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self._entries[entry["filename"]] = {key: entry[key] for key in _KEYS}
                except (ValueError, TypeError, KeyError):  # the end of a line that a kill cut off
                    continue
        # Without the half lines, to which the next line would be added.
        with atomic_output(path) as temporary:
            temporary.write_text("".join(_line(entry) for entry in self._entries.values()), encoding="utf-8")

    def entry(self, recording: pathlib.Path, features: pathlib.Path) -> dict | None:
        """The line of a recording, None unless it and its features file are still those that were noted."""
        entry = self._entries.get(recording.name)
        if entry is None or not features.exists():
            return None
        current = _state(recording, features)
        return entry if all(entry[key] == value for key, value in current.items()) else None

    def is_outdated(self, recording: pathlib.Path, features: pathlib.Path) -> bool:
        """Whether a features file was made of what the recording no longer is, or has been spoilt since."""
        return recording.name in self._entries and self.entry(recording, features) is None

    def note(self, recording: pathlib.Path, state: dict, features: pathlib.Path, seconds: float,
             parameters: dict[str, str]) -> None:
        """Adds that `features` now holds the keys of `parameters`, each made with its value.

        `state` is that of the recording before it was read: if it has changed since, it is not done.
        """
        before = self._entries.get(recording.name, {})
        if {key: before.get(key) for key in state} == state:
            parameters = before["parameters"] | parameters
        entry = {"filename": recording.name, **state, "features_bytes": features.stat().st_size, "seconds": seconds,
                 "parameters": parameters}
        self._entries[recording.name] = entry
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(entry))


def recording_state(recording: pathlib.Path) -> dict:
    """Size and time of a recording, by which a change is told."""
    stat = os.stat(recording)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _state(recording: pathlib.Path, features: pathlib.Path) -> dict:
    return {**recording_state(recording), "features_bytes": features.stat().st_size}


_KEYS = ("filename", "bytes", "mtime_ns", "features_bytes", "seconds", "parameters")


def _line(entry: dict) -> str:
    return json.dumps(entry) + "\n"
