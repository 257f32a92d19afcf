"""A run stopped anywhere, then resumed, ends as one that was never stopped."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision

from saccade.data import Augment, Mix
from saccade.data.randaugment import RandAugment
from saccade.train import Interrupted, Recipe, files, loop, run, train
from saccade.train.checkpoint import Position, State
from saccade.train.curriculum import Stage
from saccade.train.recipe import Average, Optim
from saccade.train.run import Silent
from tests.train.tiny import (
    assert_same_run,
    header,
    log_rows,
    tiny_data,
    tiny_recipe,
    use,
)

STEPS = 9
MOVES = 12
"""Files that a run moves into place: the recipe, three an epoch, and the two at the end."""


class Crash(BaseException):
    """Nobody catches it, so it stops a run as a kill does: nothing more is written."""


class At(Silent):
    """Does something after a step."""

    def __init__(self, step: int, do: Callable[[], None]) -> None:
        self.at, self.do = step, do

    def step(self, position: Position, steps: int, loss: float) -> None:
        if position.step == self.at:
            self.do()


def crash() -> None:
    raise Crash


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return tiny_recipe(validation=0.25, batch_size=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Iterator[Path]:
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, tiny_data())
        train(recipe, folder)
        yield folder


def test_the_network_of_these_tests_is_awake_and_learns(whole: Path):
    metrics = json.loads((whole / "metrics.json").read_text())
    rates = metrics["firing_rates"].values()
    assert sum(0.01 < rate < 0.99 for rate in rates) > len(rates) / 2
    rows = log_rows(whole)
    assert [row["step"] for row in rows] == [3, 6, 9]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_two_runs_of_a_recipe_are_equal_and_of_another_seed_are_not(
    tmp_path: Path, whole: Path, recipe: Recipe
):
    train(recipe, tmp_path / "again")
    assert_same_run(tmp_path / "again", whole)
    train(tiny_recipe(validation=0.25, batch_size=6, seed=1), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "other", whole)


@pytest.mark.parametrize(
    ("optimizer", "seconds", "threads"),
    [("adamw", 60.0, 1), ("adamw", -1.0, 1), ("sgd", -1.0, 1), ("adamw", -1.0, 2)],
)
def test_a_run_that_dies_after_each_of_its_steps_is_resumed_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    seconds: float,
    threads: int,
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    use(monkeypatch, tiny_data())
    recipe = tiny_recipe(optim=Optim(name=optimizer, lr=1e-2, clip=1.0))
    torch.set_num_threads(threads)
    try:
        train(recipe, tmp_path / "whole")
        for step in range(1, STEPS + 1):
            with pytest.raises(Crash):
                train(recipe, tmp_path / "dying", resume=True, progress=At(step, crash))
        train(recipe, tmp_path / "dying", resume=True)
    finally:
        torch.set_num_threads(1)
    assert_same_run(tmp_path / "dying", tmp_path / "whole")


EVERYTHING = {
    "task": {"name": "tet", "label_smoothing": 0.1},
    "optim": Optim(name="muon", lr=1e-2, schedule={"name": "trapezoid", "cooldown": 0.5}),
    "average": Average(decay=0.8, warmup=2.0),
    "mix": Mix(mixup=0.5, cutmix=1.0, until=0.8),
    "augment": Augment(shift=1, randaugment=RandAugment(layers=2, spread=1.0), erase=0.3),
    "curriculum": (Stage(until=0.3, T=1), Stage(until=0.6, T=3, size=4, sharpness=0.5)),
    "accumulate": 3,
    "validation": 0.25,
    "batch_size": 6,
}


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, {"optim": Optim(name="lamb", lr=1e-2)}],
    ids=["everything", "lamb"],
)
def test_whatever_is_switched_on_a_run_that_dies_after_each_of_its_steps_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    use(monkeypatch, tiny_data())
    recipe = tiny_recipe(**changes)
    train(recipe, tmp_path / "whole")
    for step in range(1, STEPS + 1):
        with pytest.raises(Crash):
            train(recipe, tmp_path / "dying", resume=True, progress=At(step, crash))
    train(recipe, tmp_path / "dying", resume=True)
    assert_same_run(tmp_path / "dying", tmp_path / "whole")


def test_the_loss_scale_of_float16_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a CPU Fabric would take bfloat16 instead, which has no scale."""

    def open_float16(**asked: object) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        return Fabric(accelerator="cpu", devices=1, plugins=[plugin])

    monkeypatch.setattr(run, "open_fabric", open_float16)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    use(monkeypatch, tiny_data())
    recipe = tiny_recipe(precision="16-mixed")
    train(recipe, tmp_path / "whole")
    scales = []
    for step in range(1, STEPS + 1):
        with pytest.raises(Crash):
            train(recipe, tmp_path / "dying", resume=True, progress=At(step, crash))
        if (tmp_path / "dying" / "last.safetensors").exists():
            scales.append(header(tmp_path / "dying" / "last.safetensors")["scaler"]["scale"])
    train(recipe, tmp_path / "dying", resume=True)
    ours, like = (header(tmp_path / n / "last.safetensors")["scaler"] for n in ("dying", "whole"))
    assert ours == like
    assert len(set(scales)) > 2  # it moved, so that there was something to save
    assert_same_run(tmp_path / "dying", tmp_path / "whole")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("move", range(1, MOVES + 1))
def test_a_crash_around_any_move_of_a_file_is_resumed_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    recipe: Recipe,
    move: int,
    before: bool,
):
    monkeypatch.setattr(loop, "SAVE_SHARE", math.inf)
    moves: list[str] = []
    replace = os.replace

    def dying(source: Path, target: Path) -> None:
        moves.append(Path(target).name)
        if before and len(moves) == move:
            raise Crash
        replace(source, target)
        if len(moves) == move:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dying)
        with pytest.raises(Crash):
            train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize(("share", "saved"), [(math.inf, [3, 6, 9]), (0.0, [3, 9])])
def test_short_epochs_share_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, saved: list[int]
):
    monkeypatch.setattr(loop, "SAVE_SHARE", share)
    use(monkeypatch, tiny_data())
    steps, write = [], loop.save_run

    def save(run: Path, state: State, position: Position, *others: Any, **options: Any) -> None:
        steps.append(position.step)
        write(run, state, position, *others, **options)

    monkeypatch.setattr(loop, "save_run", save)
    train(tiny_recipe(), tmp_path / "run")
    assert steps == saved
    assert len(log_rows(tmp_path / "run")) == 3  # the log has every epoch


def test_a_crash_while_a_checkpoint_is_written_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, recipe: Recipe
):
    """The half of a file that a killed process leaves is neither read nor in the way."""

    def half(number: int) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", -1.0)
        progress = At(2, lambda: patch.setattr(files.os, "fsync", half))
        with pytest.raises(Crash):
            train(recipe, tmp_path / "run", progress=progress)
    assert (tmp_path / "run" / ".last.safetensors.tmp").exists()
    assert header(tmp_path / "run" / "last.safetensors")["position"]["step"] == 1
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_signal_in_the_middle_of_an_epoch_saves_that_very_step(
    tmp_path: Path, whole: Path, recipe: Recipe, number: signal.Signals, step: int
):
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", progress=At(step, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) is handler
    position = header(tmp_path / "run" / "last.safetensors")["position"]
    assert (position["step"], position["seen"]) == (step, step % 3 * 6)
    assert json.loads((tmp_path / "run" / "state.json").read_text())["position"] == position
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_signal_at_the_last_step_lets_the_run_end(tmp_path: Path, whole: Path, recipe: Recipe):
    stop = At(STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(recipe, tmp_path / "run", progress=stop)
    assert_same_run(tmp_path / "run", whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, whole: Path, recipe: Recipe):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", progress=At(5, twice))
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_resuming_a_finished_run_changes_nothing_but_times(
    tmp_path: Path, whole: Path, recipe: Recipe
):
    shutil.copytree(whole, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_is_resumed_only_with_its_own_recipe_and_the_changed_key_is_named(
    tmp_path: Path, whole: Path, recipe: Recipe
):
    with pytest.raises(ValueError, match=r"another epochs, seed; a resumed run keeps"):
        train(tiny_recipe(validation=0.25, batch_size=6, epochs=4, seed=3), whole, resume=True)
    with pytest.raises(ValueError, match=r"already holds a run \(recipe.yaml\)"):
        train(recipe, whole)


def test_weights_in_the_folder_are_not_taken_for_the_start_of_a_new_run(
    tmp_path: Path, whole: Path, recipe: Recipe
):
    shutil.copy(whole / "last.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"already holds a run \(last.safetensors\)"):
        train(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]
