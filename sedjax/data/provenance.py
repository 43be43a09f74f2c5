"""Provenance: what computed each array of a features file, recorded in that file.

It is the comment of the zip archive that an npz file is, next to the checksum of each array that sedjax wrote. So it
cannot be parted from the arrays, and an array that has been changed since has none.
"""

import pathlib
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import pydantic

from sedjax.core import npz
from sedjax.data.identity import Extractor

FROM_FEATURES = "from_features"  # of the origin of embeddings: they were computed from features, not the recording


class Recording(pydantic.BaseModel):
    """The recording that arrays were computed from: its size and time, by which a change is told, and its length."""

    bytes: int
    mtime_ns: int
    seconds: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

    @property
    def state(self) -> dict[str, int]:
        return {"bytes": self.bytes, "mtime_ns": self.mtime_ns}


class Provenance(pydantic.BaseModel):
    """What sedjax recorded in a features file.

    Attributes:
      sums: checksum of each array that it wrote.
      origins: what computed them, as far as is known.
      recording: that they were computed from; None if they were computed from other features, or by an older version.
    """

    sums: dict[str, int] = {}
    origins: dict[str, Extractor] = {}
    recording: Recording | None = None


def read(path: pathlib.Path) -> tuple[set[str], Provenance]:
    """Keys of a features file, and the provenance of the arrays that are as sedjax wrote them. Raises UserError."""
    sums, comment = npz.npz_sums(path)
    try:
        provenance = Provenance.model_validate_json(comment, strict=True)
    except pydantic.ValidationError:  # of another program, or none
        provenance = Provenance()
    if not provenance.sums:
        try:
            provenance.sums = pydantic.TypeAdapter(dict[str, int]).validate_json(comment, strict=True)
        except pydantic.ValidationError:  # nor of a version that recorded checksums only
            return set(sums), Provenance()
    ours = {key: crc for key, crc in provenance.sums.items() if sums.get(key) == crc}
    return set(sums), Provenance(sums=ours, recording=provenance.recording,
                                 origins={key: provenance.origins[key] for key in ours if key in provenance.origins})


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], ours: Mapping[str, Extractor | None],
          recording: Recording | None) -> None:
    """Writes a features file.

    Args:
      path: of the file.
      arrays: by key.
      ours: what computed the arrays that sedjax wrote, if that is known.
      recording: that they were computed from, if they were.

    Raises:
      UserError: an array has a key that no npz file can hold.
    """
    origins = {key: origin for key, origin in ours.items() if origin}
    npz.write_npz(path, arrays, lambda sums: Provenance(
        sums={key: sums[key] for key in ours}, origins=origins, recording=recording).model_dump_json(
            exclude_unset=True).encode())
