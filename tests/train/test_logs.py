"""What is told to TensorBoard and Weights & Biases is what the log holds."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saccade.train import train
from saccade.train.live import bottleneck
from saccade.train.logs import LOGS, check_logs, numbers, told
from saccade.train.run import Silent
from tests.train.tiny import log_rows, tiny_data, tiny_recipe, use


class Runs(ModuleType):
    """Stands in for wandb: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: dict[str, Any] = {}
        self.told: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def init(self, **options: Any) -> "Runs":
        self.opened = options
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setitem(sys.modules, "wandb", runs)
    return runs


def test_both_are_told_every_line_under_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: Runs
):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is an extra; `make test` installs it",
    )
    use(monkeypatch, tiny_data())
    recipe, run = tiny_recipe(validation=0.25), tmp_path / "run"
    with told(Silent(), check_logs("tensorboard,wandb"), run, recipe) as progress:
        train(recipe, run, progress=progress)
        assert not wandb.finished
    assert wandb.finished
    rows = log_rows(run)
    assert wandb.told == [(row["step"], numbers(row)) for row in rows]
    assert wandb.opened["config"]["optim"]["lr"] == recipe.optim.lr
    assert (wandb.opened["name"], wandb.opened["resume"]) == ("run", "allow")
    first = wandb.opened["id"]
    for folder, same in ((run, True), (tmp_path / "other" / "run", False)):
        LOGS["wandb"](folder, recipe)
        assert (wandb.opened["id"] == first) is same
    board = events.EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    for name in ("loss", "accuracy", "validation_loss", "lr", "data_wait"):
        shown = [(e.step, e.value) for e in board.Scalars(name)]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows], name


def test_a_run_that_never_begins_opens_nothing(tmp_path: Path, wandb: Runs):
    with (
        pytest.raises(ValueError, match="unknown dataset"),
        told(Silent(), ["wandb", "tensorboard"], tmp_path / "run", tiny_recipe()) as progress,
    ):
        train(tiny_recipe(data={"name": "digts"}), tmp_path / "run", progress=progress)
    assert not wandb.opened
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_log_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown log 'wnadb'; did you mean 'wandb'\?"):
        check_logs("wnadb")
    assert check_logs(None) == []


@pytest.mark.parametrize(("name", "library"), [("wandb", "wandb"), ("tensorboard", "tensorboard")])
def test_a_missing_library_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str
):
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ImportError, match=rf"--log {name} needs {name}: pip install saccade\[log\]"
    ):
        check_logs(name)


def test_every_log_says_what_it_needs():
    from saccade.train.logs import _NEEDS

    assert set(_NEEDS) == set(LOGS.list()) == {"tensorboard", "wandb"}


def test_what_is_drawn_is_numbers():
    line = {"epoch": 1, "epochs": 3, "step": 7, "loss": 0.5, "note": "x", "flag": None}
    assert numbers(line) == {"epoch": 1.0, "loss": 0.5}


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "model is the bottleneck (0%"), (0.09, "model"), (0.6, "data is the bottleneck (60% w")],
)
def test_the_slower_of_data_and_model_is_named(share: float, said: str):
    assert bottleneck(share).startswith(said)
