"""Fetching, with a network that is a dictionary."""

import hashlib
import http.client
import io
import logging
import tarfile
from pathlib import Path

import pytest

from saccade.data import _download
from saccade.data._download import Remote, fetch_archive, fetch_files

PAGE = "https://example.org/page"


def remote(name: str, data: bytes, kind: str = "md5") -> Remote:
    digest = hashlib.new(kind, data).hexdigest()
    return Remote(url=f"https://example.org/files/{name}", checksum=f"{kind}:{digest}")


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    """Put bytes on the network; returns the addresses that are asked for."""
    asked: list[str] = []

    def start(**files: bytes) -> list[str]:
        def answer(url: str) -> io.BytesIO:
            asked.append(url)
            name = url.rpartition("/")[2].partition(".")[0]
            if name not in files:
                raise OSError("404 not found")
            return io.BytesIO(files[name])

        monkeypatch.setattr(_download, "_open", answer)
        return asked

    return start


def everything_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_missing_files_are_fetched_and_the_others_left_alone(tmp_path: Path, serve, kind: str):
    asked = serve(a=b"alpha", b=b"beta")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.gz").write_bytes(b"mine")
    remotes = [remote("a.gz", b"alpha", kind), remote("b.gz", b"beta", kind)]
    fetch_files("toy", remotes, tmp_path / "set", page=PAGE)
    assert asked == ["https://example.org/files/a.gz"]
    assert (tmp_path / "set" / "a.gz").read_bytes() == b"alpha"
    assert (tmp_path / "set" / "b.gz").read_bytes() == b"mine"


def test_a_wrong_checksum_leaves_no_file(tmp_path: Path, serve):
    serve(a=b"<html>please log in</html>")
    with pytest.raises(ValueError, match=r"a\.gz from https.*: got md5:\w{32}, expected md5:"):
        fetch_files("toy", [remote("a.gz", b"alpha")], tmp_path, page=PAGE)
    assert everything_in(tmp_path) == []


def test_a_connection_that_breaks_leaves_no_file(tmp_path: Path, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise http.client.IncompleteRead(b"")
            return super().read(3)

    monkeypatch.setattr(_download, "_open", lambda url: Broken(b"alpha"))
    with pytest.raises(FileNotFoundError, match="IncompleteRead"):
        fetch_files("toy", [remote("a.gz", b"alpha")], tmp_path, page=PAGE)
    assert everything_in(tmp_path) == []


def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="the network is down") as caught:
        fetch_files("toy", [remote("a.gz", b"alpha")], tmp_path / "toy", page=PAGE)
    path = str(tmp_path / "toy" / "a.gz")
    words = (path, PAGE, "https://example.org/files/a.gz", "SACCADE_DATA", "--data-root")
    assert all(word in str(caught.value) for word in words)


def test_a_folder_that_cannot_be_written_is_reported_alike(tmp_path: Path, serve):
    serve(a=b"alpha")
    (tmp_path / "toy").write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        fetch_files("toy", [remote("a.gz", b"alpha")], tmp_path / "toy", page=PAGE)


def test_progress_goes_to_the_log(tmp_path: Path, serve, caplog):
    serve(a=b"alpha")
    with caplog.at_level(logging.INFO, logger="saccade"):
        fetch_files("toy", [remote("a.gz", b"alpha")], tmp_path, page=PAGE)
    assert "fetching https://example.org/files/a.gz" in caplog.text


def test_progress_is_told_by_tenths_where_the_length_is_known(tmp_path: Path, monkeypatch, caplog):
    data = bytes(3 << 20)

    class Answer(io.BytesIO):
        headers = {"Content-Length": str(len(data))}  # noqa: RUF012

    monkeypatch.setattr(_download, "_open", lambda url: Answer(data))
    with caplog.at_level(logging.INFO, logger="saccade"):
        fetch_files("toy", [remote("a.gz", data)], tmp_path, page=PAGE)
    told = [r.getMessage() for r in caplog.records if "%" in r.getMessage()]
    assert [t.split()[1] for t in told] == ["30", "60", "100"]


def test_only_safe_addresses_are_opened(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="begins with https://"):
        _download._open("http://example.org/a.gz")


def test_an_archive_is_unpacked_whole_and_removed(tmp_path: Path, serve):
    packed = tar_of({"batches/one.bin": b"1", "batches/two.bin": b"22"})
    serve(set=packed)
    fetch_archive("toy", remote("set.tar.gz", packed), tmp_path / "toy", page=PAGE)
    assert everything_in(tmp_path / "toy") == ["batches", "batches/one.bin", "batches/two.bin"]
    assert (tmp_path / "toy" / "batches" / "two.bin").read_bytes() == b"22"


def test_an_archive_put_there_by_hand_is_used_and_kept(tmp_path: Path):
    packed = tar_of({"batches/one.bin": b"1"})
    (tmp_path / "set.tar.gz").write_bytes(packed)
    fetch_archive("toy", remote("set.tar.gz", packed), tmp_path, page=PAGE)
    assert everything_in(tmp_path) == ["batches", "batches/one.bin", "set.tar.gz"]


def test_a_wrong_archive_put_there_by_hand_is_named_and_kept(tmp_path: Path):
    (tmp_path / "set.tar.gz").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"set\.tar\.gz from .* expected md5:"):
        fetch_archive("toy", remote("set.tar.gz", b"whole"), tmp_path, page=PAGE)
    assert everything_in(tmp_path) == ["set.tar.gz"]


@pytest.mark.parametrize("name", ["../escaped", "/escaped"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, serve, name: str):
    packed = tar_of({"batches/one.bin": b"1", name: b"out"})
    serve(set=packed)
    if name.startswith("/"):  # the leading slash is taken off: it lands inside
        fetch_archive("toy", remote("set.tar.gz", packed), tmp_path / "toy", page=PAGE)
    else:
        with pytest.raises(ValueError, match="outside the destination"):
            fetch_archive("toy", remote("set.tar.gz", packed), tmp_path / "toy", page=PAGE)
        assert everything_in(tmp_path) == ["toy"]
    assert not list(tmp_path.glob("escaped"))
    assert not Path("/escaped").exists()


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, serve, cut: int):
    packed = tar_of({"batches/one.bin": bytes(range(256)) * 50})[:cut]
    serve(set=packed)
    with pytest.raises(ValueError, match=r"(?s)set\.tar\.gz: got .*expected a sound tar archive"):
        fetch_archive("toy", remote("set.tar.gz", packed), tmp_path, page=PAGE)
    assert everything_in(tmp_path) == []
