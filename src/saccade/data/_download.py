"""Fetching official files: checked, whole or not at all."""

import hashlib
import http.client
import io
import logging
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger("saccade")
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 10.0  # seconds without an answer


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A published file: where it lies and the checksum, `md5:...` or `sha256:...`, it must have."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]


def fetch_files(dataset: str, remotes: Iterable[Remote], folder: Path, *, page: str) -> None:
    """Put those files into the folder that are not there yet.

    Args:
        dataset: its name, for messages.
        remotes: the files.
        folder: made where it does not exist.
        page: where a person finds the files.

    Raises:
        FileNotFoundError: where a file could not be had; says what to put where.
        ValueError: where a file arrived with a wrong checksum; nothing is kept of it.
    """
    missing = [r for r in remotes if not (folder / r.name).is_file()]
    try:
        for remote in missing:
            _fetch(remote, folder / remote.name)
    except (OSError, http.client.HTTPException) as error:
        raise _not_found(dataset, missing, folder, page, error) from error


def fetch_archive(dataset: str, remote: Remote, folder: Path, *, page: str) -> None:
    """Unpack a published tar archive into the folder; fetch it first where it is not there.

    An archive that already lies in the folder is checked and used, and left where it is.

    Raises:
        FileNotFoundError: where it could not be had; says what to put where.
        ValueError: for a wrong checksum, or an archive that is damaged or leads out of the folder.
    """
    archive = folder / remote.name
    try:
        if archive.is_file():
            _check(archive, remote)
            _unpack(archive, folder)
            return
        _fetch(remote, archive)
        try:
            _unpack(archive, folder)
        finally:
            archive.unlink()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive}: got {error}, expected a sound tar archive") from error
    except (OSError, http.client.HTTPException) as error:
        raise _not_found(dataset, [remote], folder, page, error) from error


def matches(path: Path, checksum: str) -> bool:
    """Whether the file has the checksum, written `md5:...` or `sha256:...`."""
    return _digest(path, checksum.partition(":")[0]) == checksum


def _open(url: str) -> io.BufferedIOBase:
    """The network, and all of it: tests put something else here."""
    if not url.startswith("https://"):
        raise ValueError(f"got {url}, expected an address that begins with https://")
    answer: io.BufferedIOBase = urllib.request.urlopen(url, timeout=_TIMEOUT)
    return answer


def _fetch(remote: Remote, target: Path) -> None:
    # named after the process: two that fetch the same file do not write into each other's
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with _open(remote.url) as answer:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                _copy(answer, file, remote)
        _check(part, remote)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _copy(answer: io.BufferedIOBase, file: io.BufferedIOBase, remote: Remote) -> None:
    headers = getattr(answer, "headers", None) or {}
    total, done, told = int(headers.get("Content-Length") or 0), 0, 0
    _LOG.info("fetching %s (%.1f MB)", remote.url, total / 1e6)
    while chunk := answer.read(_CHUNK):
        file.write(chunk)
        done += len(chunk)
        tenth = 10 * done // total if total else 0
        if tenth > told:
            told = tenth
            _LOG.info("%s: %d %% of %.1f MB", remote.name, 10 * tenth, total / 1e6)


def _check(path: Path, remote: Remote) -> None:
    kind = remote.checksum.partition(":")[0]
    got = _digest(path, kind)
    if got != remote.checksum:
        raise ValueError(
            f"{path.parent / remote.name} from {remote.url}: got {got}, expected {remote.checksum}"
        )


def _digest(path: Path, kind: str) -> str:
    # md5 is what the publishers give; it tells damage, not forgery
    hasher = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return f"{kind}:{hasher.hexdigest()}"


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the goal and rename, so that a folder is never found half full."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack") as temporary:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        for item in sorted(Path(temporary).iterdir()):
            if not (folder / item.name).exists():
                os.replace(item, folder / item.name)


def _not_found(
    dataset: str, missing: list[Remote], folder: Path, page: str, error: Exception
) -> FileNotFoundError:
    where = "".join(f"\n  {remote.url} -> {folder / remote.name}" for remote in missing)
    return FileNotFoundError(
        f"{dataset}: files are missing and could not be fetched ({error or type(error).__name__}). "
        f"Get them by hand, from {page} or straight from the addresses below, and put them at:"
        f"{where}\nIf you have them elsewhere, name the data folder (now {folder.parent}) with "
        "--data-root or with the environment variable SACCADE_DATA."
    )
