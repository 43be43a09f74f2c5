"""Published weights: fetched once into a cache, recorded there, and compared with the record afterwards."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, cast

import pooch
import requests
from tqdm import tqdm

from sedjax.core.errors import UserError, printable
from sedjax.core.files import MEBIBYTE, atomic_output, make_folder, open_file, read_json, write_json

ADDRESS = "https://github.com/fschmid56/PretrainedSED/releases/download/v0.0.1/"
ADDRESS_VARIABLE, CACHE_VARIABLE = "SEDJAX_PRETRAINED_URL", "SEDJAX_CACHE"
TIMEOUT_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Record:
    """What was fetched: address, number of bytes, and SHA-256 in hexadecimal."""

    address: str
    bytes: int
    sha256: str


def fetch(name: str, check: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """The file `name` of the release in the cache, fetched if it is not there whole.

    No checksums are published: those of the first fetch are recorded next to the file, and hold for it ever after. The
    environment variables above override the folder of the release and that of the cache.

    Args:
      name: file name.
      check: raises UserError if a new file is not what it should be; then it is not kept.

    Raises:
      UserError: the file cannot be fetched or written, or differs from its record.
    """
    address = os.environ.get(ADDRESS_VARIABLE, ADDRESS).rstrip("/") + f"/{name}"
    folder = pathlib.Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("sedjax"))
    path, record_path = folder / name, folder / f"{name}.json"
    record = read_json(record_path, Record) if record_path.exists() else None
    if record and path.exists():
        if _recorded(path, record.address) != record:
            raise UserError(f"{printable(path)} is not as it was fetched from {record.address}: delete it, and it will "
                            "be fetched again.")
        return path
    make_folder(folder)
    with atomic_output(path, ours=True, durable=True) as temporary:
        _download(address, temporary)
        new = _recorded(temporary, address)
        if record and (record.bytes, record.sha256) != (new.bytes, new.sha256):
            raise UserError(f"{address} has changed since it was first fetched: delete {printable(record_path)} if you "
                            "trust the new file.")
        try:
            check(temporary)
        except UserError as error:
            raise UserError(f"{address} is not what it should be: {error}") from error
    write_json(record_path, dataclasses.asdict(new), ours=True)
    return path


def _download(address: str, path: pathlib.Path) -> None:
    # A bar without a total counts as false, which pooch takes as none.
    with tqdm(total=1, unit="B", unit_scale=True, desc=address.rpartition("/")[2], disable=None) as bar:
        try:
            pooch.HTTPDownloader(cast(Any, bar), MEBIBYTE, timeout=TIMEOUT_SECONDS)(address, str(path), None)
        except requests.RequestException as error:
            answer = error.response
            reason = "the connection failed or broke" if answer is None else f"the server answered {answer.status_code}"
            raise UserError(f"Cannot fetch {address}: {reason}; try again, or give a file with --weights=FILE."
                            ) from error


def _recorded(path: pathlib.Path, address: str) -> Record:
    with open_file(path) as file:
        return Record(address, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
