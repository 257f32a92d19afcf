"""Several processes are one run: started, stopped, killed and resumed together."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saccade.train import launch as module
from saccade.train.launch import LOST, Lost, rank, size_of
from tests.train.ranks import environment
from tests.train.test_kill import LIMIT, started, wait_until
from tests.train.tiny import assert_same_run, header, write_pictures, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("several [here]")
    at = write_pictures(top / "my pictures", N=60)
    return write_recipe(top / "tiny.yaml", at, epochs=4, batch_size=7, validation=0.1)


def children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it has ended since it was listed
        return []


def below(pid: int) -> list[int]:
    return [n for child in children(pid) for n in (child, *below(child))]


def number_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(w.decode() for w in words if w.startswith(b"RANK="))


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_run_whose_processes_are_killed_and_interrupted_equals_one_of_torchrun(
    tmp_path: Path, recipe: Path
):
    folder, log, whole = tmp_path / "my [/] run", tmp_path / "log.txt", tmp_path / "whole"
    base = ["train", str(recipe), "--device", "cpu", "--out"]
    several = ["saccade", *base, str(folder), "--devices", "2"]
    with started(several, log) as process:
        wait_until(process, log, folder, 1)
        both = children(process.pid)
        (second,) = [pid for pid in both if number_of(pid) == "RANK=1"]
        os.kill(second, signal.SIGKILL)
        assert process.wait(timeout=LIMIT) == 1
    assert gone(both)
    said = " ".join(log.read_text().split())
    assert "process 1 of 2 was killed by SIGKILL; what was saved last is kept" in said
    assert "--resume goes on from there" in said
    assert "Traceback" not in said
    with started([*several, "--resume"], log) as process:
        wait_until(process, log, folder, 2)
        both = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LIMIT) == 130
    assert gone(both)
    assert header(folder / "last.safetensors")["devices"] == 2
    words = shlex.split(log.read_text().splitlines()[-1])
    expected = ["saccade", "train", str(folder), "--resume", "--device", "cpu"]
    assert words == [*expected, "--devices", "2"]
    with started(words, log) as process:
        assert process.wait(timeout=LIMIT) == 0
    assert log.read_text().count("test accuracy") == 1
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "saccade"]
    with started([*torchrun, *base, str(whole)], tmp_path / "torchrun.txt") as process:
        assert process.wait(timeout=LIMIT) == 0, (tmp_path / "torchrun.txt").read_text()
    assert_same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_no_process_outlives_the_one_that_started_it_and_errors_are_said_once(
    tmp_path: Path, recipe: Path
):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    words = ["saccade", "train", str(recipe), "--device", "cpu", "--devices", "2"]
    words += ["data.stream=true", "data.image_size=8", "--workers", "1", "--out"]
    with started([*words, str(folder)], log) as process:
        wait_until(process, log, folder, 1)
        everyone = below(process.pid)
        assert len(everyone) > 4  # two, a reader each, and what readers are forked from
        process.kill()
        process.wait()
        assert gone(everyone)
    # they saw it as SIGTERM, so that the state is saved
    assert header(folder / "last.safetensors")["position"]["step"] > 0
    again = tmp_path / "again.txt"
    with started([*words, str(folder)], again) as process:
        assert process.wait(timeout=LIMIT) == 1
    assert " ".join(again.read_text().split()).count("already holds a run") == 1


def explain(status: list[int | None], first: int, said: str = "", asked: bool = False) -> int:
    errors = [io.BytesIO(), *(io.BytesIO(said.encode()) for _ in status[1:])]
    return module._explain(status, first, errors, asked)


def test_the_process_that_failed_first_is_blamed_in_its_own_words():
    with pytest.raises(Lost, match=r"process 1 of 2 ended with status 1: a bad picture"):
        explain([LOST, 1], 1, "a bad picture\n")
    with pytest.raises(Lost, match=r"process 2 of 3 was killed by SIGKILL"):
        explain([LOST, LOST, -9], 0)
    with pytest.raises(Lost, match=r"process 1 of 2 was killed by SIGSEGV"):
        explain([None, -11], 1)


def test_what_the_first_process_has_said_is_not_said_again():
    assert explain([1, 1], 1 - 1) == 1
    assert explain([2, LOST], 0) == 2


def test_an_interrupt_that_was_asked_for_is_no_failure():
    assert explain([130, 130], 0) == 130
    assert explain([130, -15], 1, asked=True) == 130


def test_several_machines_have_to_be_told_apart(monkeypatch: pytest.MonkeyPatch):
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"NODE_RANK and MASTER_ADDR is not set.*NODE_RANK=0\.\.2"):
        module._environment(4, 3)
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(ValueError, match=r"but MASTER_ADDR is not set"):
        module._environment(4, 3)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    found = module._environment(4, 3)
    assert (found["WORLD_SIZE"], found["GROUP_RANK"]) == ("12", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "29500")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    own = module._environment(2, 1)
    assert (own["OMP_NUM_THREADS"], module._environment(9, 1)["OMP_NUM_THREADS"]) == ("3", "1")
    assert (own["WORLD_SIZE"], own["GROUP_RANK"], own["MASTER_ADDR"]) == ("2", "0", "127.0.0.1")


def test_the_numbers_of_torchrun_are_taken_and_others_refused(monkeypatch: pytest.MonkeyPatch):
    assert (size_of(None, None), size_of(3, 2), rank()) == ((1, 1), (3, 2), 0)
    for name, value in environment(5, 8, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (size_of(None, None), size_of(4, 2), rank()) == ((4, 2), (4, 2), 5)
    with pytest.raises(ValueError, match=r"got --devices 2, but torchrun started 4"):
        size_of(2, None)
    with pytest.raises(ValueError, match=r"got --nodes 1, but torchrun started 2"):
        size_of(None, 1)


def test_a_process_follows_the_one_that_launched_it(tmp_path: Path):
    """It hears that its input has come to an end, and stops as if by SIGTERM."""
    code = (
        "import signal, sys, time\n"
        "from saccade.train.launch import follow\n"
        "signal.signal(signal.SIGTERM, lambda *a: sys.exit(7))\n"
        "follow()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    own = os.environ | {module._WATCHED: "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=own, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert re.match(rb"ready", process.stdout.readline())
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=LIMIT) == 7
