"""A file is whole or as it was before."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from saccade.train import files, loop, train
from saccade.train.files import write_atomically, write_json
from tests.train.tiny import tiny_data, tiny_recipe, use


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file on a disk that fills up half way."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, raw: bytes) -> None:
        self.file.write(raw[: len(raw) // 2])
        full()


@pytest.mark.parametrize("data", [b"\x00\xff" * 9, "täxt\n", ""])
def test_what_is_written_is_read_back_and_replaces_what_was_there(
    tmp_path: Path, data: bytes | str
):
    path = tmp_path / "file"
    path.write_text("before")
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_the_file_before_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
):
    def fail(*arguments: object) -> None:
        raise OSError(number, "no room")

    path = tmp_path / "last.safetensors"
    path.write_bytes(b"good")
    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match=r"the disk is full: .*last\.safetensors needs 2\.0 MiB") as e:
        write_atomically(path, bytes(2 << 20))
    assert e.value.errno == number
    assert path.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_fills_up_half_way_leaves_the_file_before_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "state"
    path.write_bytes(b"good")
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "open", lambda self, mode: FullFile(self))
        with pytest.raises(OSError, match="what was there before is untouched"):
            write_atomically(path, b"much more than there was")
    assert path.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_another_error_of_the_disk_is_passed_on_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="input/output error"):
        write_atomically(tmp_path / "state", b"data")
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_what_json_has_no_word_for(tmp_path: Path):
    write_json(tmp_path / "a.json", {"loss": 0.1 + 0.2, "name": "é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.1 + 0.2, "name": "é"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["loss"] == 0.1 + 0.2


def test_a_disk_that_fills_up_during_training_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    monkeypatch.setattr(loop, "SAVE_SHARE", math.inf)
    calls: list[int] = []
    fsync = os.fsync

    def fills(number: int) -> None:
        calls.append(number)
        if len(calls) > 5:  # recipe; log, weights and state of epoch 1; log of epoch 2
            full()
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fills)
        with pytest.raises(OSError, match=r"the disk is full: .*last\.safetensors needs"):
            train(tiny_recipe(), tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {"recipe.yaml", "log.jsonl", "last.safetensors", "state.json"}
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["position"]["epoch"] == 1
    train(tiny_recipe(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.json").exists()
