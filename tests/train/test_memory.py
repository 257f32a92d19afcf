"""A batch that does not fit is answered with one that does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saccade.train import run, train
from saccade.train.memory import TooLarge, largest
from saccade.train.tasks import Batch
from saccade.train.tasks.classify import Classify
from tests.train.tiny import tiny_data, tiny_recipe, use


class Small(Classify):
    """A device whose memory holds so many pictures."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.tried = room, []

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.tried.append(len(batch.y))
        if len(batch.y) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().__call__(model, batch)


@pytest.mark.parametrize(
    ("room", "size", "pieces"), [(8, 16, 2), (5, 16, 4), (1, 16, 16), (6, 20, 4), (3, 7, 3)]
)
def test_the_largest_batch_that_was_tried_and_the_pieces_that_keep_the_recipe_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, size: int, pieces: int
):
    use(monkeypatch, tiny_data())
    task = Small(room)
    monkeypatch.setattr(run, "make_task", lambda part: task)
    with pytest.raises(TooLarge) as error:
        train(tiny_recipe(batch_size=size), tmp_path / "run")
    fits = next(n for n in (size >> k for k in range(1, 9)) if n <= room)
    assert task.tried[-1] == fits
    assert task.tried == [size, *(size >> k for k in range(1, len(task.tried)))]
    message = str(error.value)
    assert message.startswith(f"a batch of {size} pictures does not fit")
    assert f"the largest tried that does is {fits}. accumulate={pieces} takes it" in message
    assert f"leaves batch_size={size} as it is" in message
    assert -(-size // pieces) <= fits


def test_where_not_even_one_picture_fits_no_accumulation_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    monkeypatch.setattr(run, "make_task", lambda part: Small(0))
    with pytest.raises(TooLarge, match="nor does one picture; expected a smaller model") as error:
        train(tiny_recipe(), tmp_path / "run")
    assert "accumulate" not in str(error.value)


def test_an_error_of_the_model_is_not_taken_for_memory():
    class Broken(Classify):
        def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            raise RuntimeError("something else")

    batch = Batch(x=torch.rand(4, 1, 8, 8), y=torch.zeros(4, dtype=torch.long))
    with pytest.raises(RuntimeError, match="something else"):
        largest(nn.Linear(1, 1), Broken(), batch)


def test_frames_are_halved_along_the_batch_and_not_along_time():
    seen: list[tuple[int, ...]] = []

    class Watch(Small):
        def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            seen.append(tuple(batch.x.shape))
            if len(batch.y) > self.room:
                raise torch.OutOfMemoryError
            return {"loss": model(batch.x).sum()}

    batch = Batch(x=torch.rand(3, 8, 1, 1, 2), y=torch.zeros(8, dtype=torch.long))
    assert largest(nn.Linear(2, 1), Watch(2), batch) == 2
    assert seen == [(3, 4, 1, 1, 2), (3, 2, 1, 1, 2)]
