"""Batches made ahead are the batches, and the thread that makes them never outlives its run."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from saccade.data import Augment, Mix, load_data
from saccade.train import Interrupted, flight, train
from saccade.train.ahead import DEPTH, Ahead, ahead
from saccade.train.batches import Batches, Pictures, Plan, Resident
from saccade.train.streamed import batches_of, source_of
from saccade.train.tasks import Batch
from tests.train.test_resume import At
from tests.train.tiny import assert_same_run, tiny_data, tiny_recipe, use, write_pictures

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("batches")] == []


def resident() -> Batches:
    data = tiny_data()
    how = Augment(shift=1, flip=True, rotate=10, erase=0.5)
    plan = Plan(size=7, how=how, mix=Mix(mixup=1.0), epochs=4, seed=3, pieces=2)
    return Resident(Pictures.of(data.train, data, CPU), plan)


def assert_equal(ours: list[Batch], like: list[Batch]) -> None:
    for a, b in zip(ours, like, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert a.soft is not None
        assert torch.equal(a.soft, b.soft)


def test_batches_are_the_same_in_any_order_of_steps():
    plain, made = resident(), Ahead(resident().at, 12, CPU)
    with closing(made):
        for step in (0, 1, 2, 7, 8, 3, 3, 11, 0):
            assert_equal(made.at(step), plain.at(step))


def test_the_next_ones_are_begun_before_they_are_asked_for_and_none_behind_the_last():
    asked: list[int] = []

    def make(step: int) -> list[Batch]:
        asked.append(step)
        return []

    made = Ahead(make, 5, CPU)
    with closing(made):
        made.at(0)
        deadline = time.monotonic() + 10
        while len(asked) < 1 + DEPTH and time.monotonic() < deadline:
            time.sleep(0.001)
        assert asked == [0, 1, 2]
        for step in range(1, 5):
            made.at(step)
    assert asked == [0, 1, 2, 3, 4]


def test_what_the_thread_cannot_make_is_raised_in_its_own_words_when_it_is_asked_for():
    def make(step: int) -> list[Batch]:
        if step == 2:
            raise ValueError("picture 7 cannot be read")
        return []

    made = Ahead(make, 5, CPU)
    with closing(made):
        made.at(0)
        made.at(1)
        with pytest.raises(ValueError, match="picture 7 cannot be read"):
            made.at(2)


def test_closing_waits_for_the_batch_that_is_being_made_and_begins_no_other():
    begun, ended = [], []

    def slow(step: int) -> list[Batch]:
        begun.append(step)
        time.sleep(0.05)
        ended.append(step)
        return []

    made = Ahead(slow, 9, CPU)
    made.at(0)
    made.close()
    assert begun == ended
    assert len(begun) < 1 + DEPTH


def test_on_a_cpu_nothing_is_made_ahead():
    make = resident().at
    with ahead(make, 9, CPU) as at:
        assert at is make


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a CPU read ahead as those on a GPU do."""
    monkeypatch.setattr(flight, "ahead", lambda *given: closing_at(Ahead(*given)))


def closing_at(made: Ahead):
    from contextlib import contextmanager

    @contextmanager
    def block():
        with closing(made):
            yield made.at

    return block()


def test_a_run_that_reads_ahead_is_the_run_and_can_be_stopped_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    train(tiny_recipe(), tmp_path / "plain")
    monkeypatch.setattr(flight, "ahead", lambda *given: closing_at(Ahead(*given)))
    stop = At(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(tiny_recipe(), tmp_path / "ahead", progress=stop)
    train(tiny_recipe(), tmp_path / "ahead", resume=True)
    assert_same_run(tmp_path / "ahead", tmp_path / "plain")


def test_an_error_or_a_second_ctrl_c_ends_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threaded: None
):
    use(monkeypatch, tiny_data())

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), tmp_path / "a", progress=At(2, twice))
    with pytest.raises(ValueError, match="got shift=9 for images of 8x8 pixels"):
        train(tiny_recipe(augment=Augment(shift=9)), tmp_path / "b")


@pytest.mark.slow
def test_workers_may_be_started_and_read_from_the_thread(tmp_path: Path):
    at = write_pictures(tmp_path / "pictures", N=45)
    data = load_data(
        {"name": "folder", "path": str(at), "channels": 1, "image_size": 8, "stream": True}
    )
    plan = Plan(size=7, seed=3, mix=Mix(mixup=1.0), epochs=4)

    def batches(workers: int) -> Batches:
        return batches_of(source_of(data.train, data, CPU, workers), plan)

    plain, made = batches(0), Ahead(batches(2).at, 20, CPU)
    with closing(made):
        for step in (0, 1, 2, 6, 7):
            assert_equal(made.at(step), plain.at(step))
