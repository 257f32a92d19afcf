"""What is read from disk while the model works is no matter of who reads it, or when."""

import os
import signal
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.data import Augment, ImageData, Mix, load_data
from saccade.train import Interrupted, Recipe, train
from saccade.train.batches import Batches, Plan
from saccade.train.devices import Share
from saccade.train.streamed import Streamed, batches_of, default_workers, source_of
from saccade.train.tasks import Batch
from tests.train.test_resume import At
from tests.train.tiny import assert_same_run, batch_at, log_rows, tiny_recipe, write_pictures

HOW = Augment(shift=1, flip=True, rotate=10)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), N=45, side=12)


def part(at: Path, **changes: Any) -> dict[str, Any]:
    known = {"name": "folder", "path": str(at), "channels": 1, "image_size": 8, "stream": True}
    return known | changes


def batches(data: ImageData, *, workers: int, share: Share | None = None) -> Batches:
    source = source_of(data.train, data, CPU, workers)
    return batches_of(source, Plan(size=7, how=HOW, seed=3, share=share or Share()))


@pytest.mark.slow
def test_a_batch_is_no_matter_of_workers_devices_or_what_was_read_before(at: Path):
    data = load_data(part(at, crop=[0.2, 1]))
    plain = batches(data, workers=0)
    assert len(plain) == 5  # 36 pictures in sevens
    like = [batch_at(plain, step) for step in range(8)]
    for step, batch in enumerate(like):  # each of them alone
        assert torch.equal(batch_at(batches(data, workers=0), step).x, batch.x), step
    working = batches(data, workers=2)
    halves = [batches(data, workers=0, share=Share(rank=r, world=2)) for r in range(2)]
    for step, batch in enumerate(like):
        assert torch.equal(batch_at(working, step).x, batch.x), step
        parts = [batch_at(half, step) for half in halves]
        assert torch.equal(torch.cat([p.x for p in parts]), batch.x), step
        assert torch.equal(torch.cat([p.y for p in parts]), batch.y), step
    del working
    # a second epoch: other crops of the same pictures
    assert not torch.equal(like[0].x.sort(0).values, like[5].x.sort(0).values)


def test_pieces_are_shared_and_a_blend_is_one_for_all_pieces_of_a_device(at: Path):
    source = source_of((data := load_data(part(at))).train, data, CPU, 0)

    def pieces(rank: int, world: int, mix: Mix) -> list[Batch]:
        share = Share(rank=rank, world=world)
        plan = Plan(size=7, mix=mix, share=share, pieces=2)
        return batches_of(source, plan).at(0)

    whole = pieces(0, 1, Mix())
    assert [len(piece.y) for piece in whole] == [3, 4]
    for a, b, piece in zip(pieces(0, 2, Mix()), pieces(1, 2, Mix()), whole, strict=True):
        assert torch.equal(torch.cat([a.x, b.x]), piece.x)
        assert torch.equal(torch.cat([a.y, b.y]), piece.y)
    # the share of the first picture is drawn once, for both devices and all of their pieces
    blended = [piece for rank in (0, 1) for piece in pieces(rank, 2, Mix(mixup=1.0))]
    shares = {round(float(n), 5) for p in blended for n in p.soft[torch.arange(len(p.y)), p.y]}
    assert len(shares - {1.0}) == 1


def test_an_epoch_shows_each_picture_at_most_once(at: Path):
    data = load_data(part(at))
    source = source_of(data.train, data, CPU, 0)
    still = batches_of(source, Plan(size=7, seed=3))
    shown = torch.cat([batch_at(still, step).x for step in range(5)])
    assert len({tuple(x.flatten().tolist()) for x in shown}) == 35


def test_every_picture_of_a_test_comes_once_in_order(at: Path):
    data = load_data(part(at))
    source = source_of(data.train, data, CPU, 0)
    assert isinstance(source, Streamed)
    shares = [list(source.all(5, Share(rank=r, world=3))) for r in range(3)]
    found = sorted((p.start, p.stop, b) for share in shares for p, b in share)
    assert [(a, b) for a, b, _ in found] == [(n, min(n + 5, 36)) for n in range(0, 36, 5)]
    labels = torch.cat([b.y for _, _, b in found])
    assert labels.tolist() == data.train.labels.tolist()


@pytest.fixture(scope="module")
def recipe(at: Path) -> Recipe:
    return tiny_recipe(data=part(at), augment=HOW, batch_size=6, validation=0.2)


def test_a_streamed_run_is_resumed_exactly(tmp_path: Path, recipe: Recipe):
    train(recipe, tmp_path / "whole", workers=0)
    stop = At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", workers=0, progress=stop)
    train(recipe, tmp_path / "run", workers=0, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert log_rows(tmp_path / "run")[-1]["loss"] < log_rows(tmp_path / "run")[0]["loss"]
    assert all(0 < row["data_wait"] < 1 for row in log_rows(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_bad_during_a_run_is_named(tmp_path: Path, workers: int):
    at = write_pictures(tmp_path / "pictures", N=30)
    data = load_data(part(at))
    bad = at / "class 1" / "4.png"
    bad.write_bytes(b"no picture")
    shown = [source_of(s, data, CPU, workers).all(50, Share()) for s in (data.train, data.test)]
    with pytest.raises(ValueError, match=r"class 1/4\.png \(picture \d+\): got .*readable"):
        list(chain(*shown))


def test_there_is_a_worker_at_least(monkeypatch: pytest.MonkeyPatch):
    for cores, devices, expected in ((1, 1, 1), (4, 1, 3), (64, 1, 8), (64, 16, 3), (None, 1, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(devices))
        assert default_workers() == expected
