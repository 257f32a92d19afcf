"""Real processes, really killed."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from saccade.train import load_recipe, train
from tests.train.tiny import assert_same_run, header, write_pictures, write_recipe

EPOCHS = 6
LIMIT = 120.0
"""Seconds after which a process is taken to hang."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A recipe on disk, and what it comes to when nobody interferes."""

    recipe: Path
    whole: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    top = tmp_path_factory.mktemp("kill [here]")  # a space and brackets, as people have them
    at = write_pictures(top / "my pictures", N=120)
    recipe = write_recipe(top / "tiny.yaml", at, epochs=EPOCHS, batch_size=4, validation=0.1)
    train(load_recipe(recipe), top / "whole", device="cpu")
    return Scene(recipe=recipe, whole=top / "whole")


@contextmanager
def started(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process of its own, on one thread as the tests are."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def wait_until(process: subprocess.Popen[bytes], log: Path, folder: Path, epochs: int) -> None:
    """Until the run has begun (epochs 0) or has logged so many epochs."""
    deadline, rows = time.monotonic() + LIMIT, folder / "log.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        done = rows.read_text().count("\n") if rows.exists() else 0
        if (folder / "recipe.yaml").exists() and done >= epochs:
            return
        time.sleep(0.01)
    pytest.fail(f"status {process.poll()} before epoch {epochs}: {log.read_text()}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20260101])
def test_kills_at_random_moments_do_not_change_what_a_run_comes_to(
    tmp_path: Path, scene: Scene, seed: int
):
    """Before the first checkpoint, between two of them, and while the end is written."""
    chance, folder, log = random.Random(seed), tmp_path / "run", tmp_path / "log.txt"
    words = ["saccade", "train", str(scene.recipe), "--out", str(folder), "--device", "cpu"]
    for epochs in (0, chance.randint(1, 4), EPOCHS):
        with started([*words, "--resume"], log) as process:
            wait_until(process, log, folder, epochs)
            delay = chance.uniform(0, 0.2)
            time.sleep(delay)
            process.kill()
            status = process.wait()
        print(f"seed {seed}: killed {delay:.3f} s after epoch {epochs}, status {status}")
        assert status == -signal.SIGKILL
    with started([*words, "--resume"], log) as process:
        assert process.wait(timeout=LIMIT) == 0
    assert_same_run(folder, scene.whole)
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_ctrl_c_and_sigterm_save_the_state_and_print_the_command_that_goes_on(
    tmp_path: Path, scene: Scene
):
    folder, log, root = tmp_path / "my [/] run", tmp_path / "log.txt", tmp_path / "no data"
    words = ["saccade", "train", str(scene.recipe), "--out", str(folder), "--device", "cpu"]
    words += ["--data-root", str(root)]
    for number, epochs in ((signal.SIGINT, 1), (signal.SIGTERM, 4)):
        with started(words, log) as process:
            wait_until(process, log, folder, epochs)
            time.sleep(0.03)
            process.send_signal(number)
            assert process.wait(timeout=LIMIT) == 130
        saved = header(folder / "last.safetensors")["position"]
        assert json.loads((folder / "state.json").read_text())["position"] == saved
        words = shlex.split(log.read_text().splitlines()[-1])
        expected = ["saccade", "train", str(folder), "--resume", "--device", "cpu"]
        assert words == [*expected, "--data-root", str(root)]
    with started(words, log) as process:
        assert process.wait(timeout=LIMIT) == 0
    assert_same_run(folder, scene.whole)
