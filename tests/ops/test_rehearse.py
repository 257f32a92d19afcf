"""Kernels are compiled side by side before their first launch; none is launched meanwhile."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from saccade.ops import _triton

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels")


class Kernel:
    """Stands for a compiled one."""

    def __init__(self) -> None:
        self.loaded, self.threads = 0, set[int]()
        self.src, self.metadata = self, None

    @property
    def run(self) -> None:
        assert not BUILDING, "Python may mix up modules of one name that are loaded together"
        self.loaded += 1
        self.threads.add(threading.get_ident())


BUILDING: set[Kernel] = set()


def launcher(kernel: Kernel, metadata: None) -> None:
    """Stands for Triton's, which compiles and loads a C module for a kernel."""
    BUILDING.add(kernel)
    time.sleep(0.01)
    BUILDING.discard(kernel)


class Promise:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def result(self) -> Kernel:
        return self.kernel


class Source:
    """Stands for a jitted function."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.launched, self.kernel = 0, Kernel()

    def warmup(self, *args: object, grid: tuple[int, ...], **constants: object) -> object:
        self.asked.append((args, grid, constants))
        return Promise(self.kernel) if len(self.asked) == 1 else self.kernel

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*args: object, **constants: object) -> None:
            self.launched += 1

        return launch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A machine that has a GPU, as far as `rehearse` asks."""
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    driver = SimpleNamespace(active=SimpleNamespace(launcher_cls=launcher))
    monkeypatch.setattr("triton.runtime.driver", driver)
    return torch.device("cuda", 0)


def doubled(source: Source, seen: list[bool]):
    """A function whose both passes launch the kernel."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            _triton.launch(source, (3,), x, SIZE=4)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            _triton.launch(source, (3,), g, SIZE=4)
            seen.append(True)
            return g * 2

    return Doubled.apply


def test_both_passes_are_compiled_and_loaded_once_and_not_launched(cuda: torch.device):
    source, seen = Source(), []
    x = torch.ones(2, requires_grad=True)
    _triton.rehearse(lambda: doubled(source, seen)(x).sum().backward(), nn.Identity(), cuda)
    assert seen
    assert source.launched == 0
    assert [(grid, constants) for _, grid, constants in source.asked] == [((3,), {"SIZE": 4})] * 2
    assert source.kernel.loaded == 1
    doubled(source, seen)(x)
    assert source.launched == 1
    assert len(source.asked) == 2


def test_kernels_are_loaded_one_by_one_behind_all_that_is_compiled(cuda: torch.device):
    sources = [Source() for _ in range(9)]

    def run() -> None:
        for source in sources:
            _triton.launch(source, (1,))

    _triton.rehearse(run, nn.Identity(), cuda)
    assert [source.kernel.loaded for source in sources] == [1] * 9
    assert {t for s in sources for t in s.kernel.threads} == {threading.get_ident()}


def test_kernels_are_asked_for_before_cudnn_searches(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    source, searching = Source(), []

    def run() -> None:
        _triton.launch(source, (1,))
        searching.append(torch.backends.cudnn.benchmark)

    _triton.rehearse(run, nn.Identity(), cuda)
    assert searching == [False, True]
    assert torch.backends.cudnn.benchmark
    assert source.kernel.loaded == 1


def test_what_fails_inside_is_raised_and_statistics_and_launches_are_as_before(cuda: torch.device):
    model = nn.BatchNorm1d(2)

    def fail() -> None:
        model(torch.ones(3, 2))
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        _triton.rehearse(fail, model, cuda)
    assert model.num_batches_tracked == 0
    assert torch.equal(model.running_mean, torch.zeros(2))
    source = Source()
    _triton.launch(source, (1,))
    assert source.launched == 1


def test_elsewhere_nothing_is_run():
    ran: list[bool] = []
    _triton.rehearse(lambda: ran.append(True), nn.Identity(), torch.device("cpu"))
    assert not ran
