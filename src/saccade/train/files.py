"""Files that are either whole or not there: written beside, then moved into place."""

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data`, or leave it as it was.

    Raises:
        OSError: where the disk is full (says how much was to be written) or refuses.
    """
    raw = data.encode() if isinstance(data, str) else data
    # always the same name, so that a killed process leaves at most one file behind
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk is full: {path} needs {len(raw) / 2**20:.1f} MiB; what was there "
                "before is untouched",
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by JSON, indented; refuses NaN, which is not JSON."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def free_folder(first: Path, file: str) -> Path:
    """The folder itself, or with the lowest number behind it that holds no such file."""
    number, folder = 1, first
    while (folder / file).exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder
