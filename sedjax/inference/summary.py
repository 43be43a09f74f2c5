"""Summaries of a run: events by class, and by the hour in which they occurred."""

import collections
import datetime
from collections.abc import Iterable, Mapping, Sequence

from sedjax.audio.start_time import start_of
from sedjax.core.errors import UserError, printable
from sedjax.inference.detection import Event

HOURLY_COLUMNS = ("hour", "recorded_minutes", "event_label", "events", "event_minutes")
MOST_NAMES = 3  # of recordings that a summary names
Events = Mapping[str, Sequence[Event]]  # by name of the recording


def text(events: Events) -> str:
    """Number and minutes of the events of each class that occurs, and the recordings with the most events."""
    by_class = collections.defaultdict(list)
    for event in (event for detected in events.values() for event in detected):
        by_class[event.label].append(event.offset - event.onset)
    if not by_class:
        return ""
    width = max(map(len, by_class))
    lines = [f"  {label:{width}}{len(seconds):>10,} events{sum(seconds) / 60:>10.1f} min"
             for label, seconds in sorted(by_class.items(), key=lambda item: -sum(item[1]))]
    if len(events) > 1:
        most = sorted(events, key=lambda name: -len(events[name]))[:MOST_NAMES]
        lines.append("Most events: " + ", ".join(f"{name} ({len(events[name]):,})" for name in most) + ".")
    return "\n".join(map(printable, lines))


def starts_of(names: Iterable[str], start: datetime.datetime | None = None) -> dict[str, datetime.datetime]:
    """When each recording began: by its name, or `start` for a single one whose name does not say.

    Raises UserError if the start of a recording is unknown.
    """
    starts = {name: start_of(name) for name in names}
    unknown = [name for name, begun in starts.items() if begun is None]
    if unknown and start and len(unknown) == 1:
        starts[unknown[0]] = start
    elif unknown:
        raise UserError(f"--formats=hourly: the name of {printable(unknown[0])} does not say when the recording began: "
                        "rename it like 20240131_053000.wav, or, if it is the only one, give --start=2024-01-31T05:30.")
    return {name: begun for name, begun in starts.items() if begun}


def hourly(events: Events, seconds: Mapping[str, float], starts: Mapping[str, datetime.datetime]) -> list[tuple]:
    """Rows of HOURLY_COLUMNS: the events of each class that began in an hour, and what was recorded in that hour.

    An event that continues into the next hour counts where it begins, with its whole length. An hour that was recorded
    without any event has a row with an empty class.

    Args:
      events, seconds, starts: events, length and start of each recording.
    """
    recorded: dict[datetime.datetime, float] = collections.defaultdict(float)
    lengths = collections.defaultdict(list)
    for name, detected in events.items():
        now, end = starts[name], starts[name] + datetime.timedelta(seconds=seconds[name])
        while now < end:
            following = min(_hour(now) + datetime.timedelta(hours=1), end)
            recorded[_hour(now)] += (following - now).total_seconds()
            now = following
        for event in detected:
            hour = _hour(starts[name] + datetime.timedelta(seconds=event.onset))
            lengths[hour, event.label].append(event.offset - event.onset)
    rows = [(hour, label, len(parts), sum(parts)) for (hour, label), parts in lengths.items()]
    rows += [(hour, "", 0, 0.0) for hour in recorded.keys() - {hour for hour, _ in lengths}]
    return [(hour.isoformat(timespec="minutes"), f"{recorded[hour] / 60:.2f}", label, count, f"{length / 60:.3f}")
            for hour, label, count, length in sorted(rows)]


def _hour(time: datetime.datetime) -> datetime.datetime:
    return time.replace(minute=0, second=0, microsecond=0)
