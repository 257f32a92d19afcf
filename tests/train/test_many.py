"""Two devices come to what one comes to."""

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn

from saccade.analysis import explain
from saccade.data import Augment, Mix
from saccade.data.randaugment import RandAugment
from saccade.train import Diverged, Interrupted, flight, loop
from saccade.train import run as module
from saccade.train.batches import Pictures, Plan, Resident
from saccade.train.checkpoint import read, read_run
from saccade.train.curriculum import Stage
from saccade.train.devices import Share, first_alone, gathered, open_fabric, share_of
from saccade.train.loop import fit
from saccade.train.outcome import finish
from saccade.train.recipe import Average, Optim, Recipe
from saccade.train.run import Silent
from saccade.train.synchronised import alone, synchronised
from tests.train.ranks import Ranks, environment
from tests.train.test_capture import Again, plain_rules
from tests.train.test_memory import Small
from tests.train.tiny import in_float64, tiny_data, tiny_recipe

EXACT = {"rtol": 1e-9, "atol": 1e-9}
"""Sums in another order, in float64, through nine steps. The gradient of a bias before a norm is 0
but for rounding, 1e-17 or so, which Adam divides by 1e-8: hence the absolute part."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.close()


def recipe(**changes: Any) -> Recipe:
    """Batches of 7, which two devices cannot share evenly."""
    known = {"optim": Optim(lr=1e-2, clip=1.0), "batch_size": 7, "validation": 0.1}
    return tiny_recipe(**known | changes)


def run_one(folder: Path, strategy: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A run in float64, by one process or by one of two; what it came to."""
    torch.manual_seed(0)
    data, chosen = tiny_data(N=30), recipe(**changes)
    fabric = open_fabric(device="cpu", precision="32-true", strategy=strategy)
    model = in_float64(module.build_model(chosen, data))
    session = module._open(chosen, folder, data, model, fabric, Silent(), 0)
    folder.mkdir(exist_ok=True)
    fit(session)
    metrics = finish(session, data, 0)
    fabric.barrier()
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {nn.BatchNorm2d}
    return {"log": session.log, "metrics": metrics, "position": session.position}


def run_one_as_on_gpus(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """As `run_one` with ddp, but nothing stands around the model, and steps are recorded."""
    recorders: list[Again] = []

    def recorder(device: torch.device) -> Again:
        recorders.append(Again(device))
        return recorders[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wrap_model", bare)
        patch.setattr(module, "refusal", lambda fabric, recipe, task: "")
        patch.setattr(module, "make_optimizer", plain_rules(module.make_optimizer))
        patch.setattr(flight, "CudaGraphs", recorder)
        patch.setattr(flight, "_late", lambda s: 1)
        found = run_one(folder, "ddp", changes)
    return found | {"recorded": [r.recorded for r in recorders]}


def bare(fabric: Fabric, model: nn.Module) -> _FabricModule:
    return _FabricModule(model, fabric.strategy, original_module=model)


TOGETHER = {
    "task": {"name": "tet", "label_smoothing": 0.1},
    "optim": Optim(name="muon", lr=1e-2, clip=1.0, schedule="trapezoid"),
    "average": Average(decay=0.7, warmup=1.0),
    "mix": Mix(mixup=0.5, cutmix=0.5, until=0.8),
    "augment": Augment(shift=1, randaugment=RandAugment(layers=2, spread=1.0), erase=0.3),
    "curriculum": (Stage(until=0.3, T=1), Stage(until=0.6, T=3, size=4, sharpness=0.5)),
    "accumulate": 2,
}
"""Pieces of 3 and 4, of which two devices take 1 and 2, and 2 and 2."""


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("single") / "run"
    return folder, run_one(folder, "auto", {})


def assert_alike(ours: Path, like: Path) -> None:
    (_, a), (_, b) = read(ours / "last.safetensors"), read(like / "last.safetensors")
    assert a.keys() == b.keys()
    assert any("running_var" in name for name in a)
    assert any(name.startswith("optim/") for name in a)
    for name in a:
        torch.testing.assert_close(a[name], b[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_come_to_the_weights_statistics_and_numbers_of_one(
    tmp_path: Path, pair: Ranks, single: tuple[Path, dict[str, Any]], strategy: str
):
    both = pair(run_one, tmp_path / "run", strategy, {})
    like, one = single
    assert_alike(tmp_path / "run", like)
    for mine in both:
        for row, other in zip(mine["log"], one["log"], strict=True):
            for key in ("epoch", "step", "accuracy", "validation_accuracy"):
                assert row[key] == other[key], key
            for key in ("loss", "validation_loss"):
                assert row[key] == pytest.approx(other[key], rel=1e-9), key
        for key in ("test_accuracy", "test_images", "train_images", "firing_rates", "layers"):
            assert mine["metrics"][key] == one["metrics"][key], key
        assert mine["metrics"]["test_loss"] == pytest.approx(one["metrics"]["test_loss"], rel=1e-6)
    with np.load(tmp_path / "run/observations.npz") as a, np.load(like / "observations.npz") as b:
        assert np.array_equal(a["confusion"], b["confusion"])
        assert a["confusion"].sum() == 12


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "rule"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_two_devices_come_to_what_one_comes_to_with_all_that_a_recipe_can_switch_on(
    tmp_path: Path, pair: Ranks, strategy: str, rule: str
):
    changes = TOGETHER | {"optim": replace(TOGETHER["optim"], name=rule)}
    both = pair(run_one, tmp_path / "two", strategy, changes)
    one = run_one(tmp_path / "one", "auto", changes)
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert any(name.startswith("average/") for name in read(tmp_path / "two/last.safetensors")[1])
    for mine in both:
        for row, other in zip(mine["log"], one["log"], strict=True):
            for key in ("loss", "validation_loss", "accuracy", "validation_accuracy"):
                assert row[key] == pytest.approx(other[key], rel=1e-9), key
        assert mine["metrics"]["weights"] == "averaged"
        assert mine["metrics"]["test_loss"] == pytest.approx(one["metrics"]["test_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, TOGETHER], ids=["plain", "together"])
def test_gradients_that_are_summed_in_one_piece_in_recorded_steps_come_to_what_one_device_does(
    tmp_path: Path, pair: Ranks, changes: dict[str, Any]
):
    both = pair(run_one_as_on_gpus, tmp_path / "two", changes)
    one = run_one(tmp_path / "one", "auto", changes)
    assert all(mine["recorded"] for mine in both)
    assert_alike(tmp_path / "two", tmp_path / "one")
    for mine in both:
        assert mine["position"].step == one["position"].step
        for row, other in zip(mine["log"], one["log"], strict=True):
            for key in ("loss", "validation_loss", "accuracy", "validation_accuracy"):
                # shares of the classes stand for labels where a recipe mixes: in float32, as x
                assert row[key] == pytest.approx(other[key], rel=1e-7), key


def variants_of_a_pass() -> tuple[set[str], int]:
    """What `explain` says of a model whose norms are joined."""
    data = tiny_data(N=30)
    open_fabric(device="cpu", precision="32-true", strategy="ddp")
    model = module.build_model(recipe(), data).train()
    with synchronised(model):
        seen = explain(model, torch.rand(2, 1, 8, 8))
    return {call.variant for call in seen.calls if call.op == "norm_lif"}, len(seen.apart)


@pytest.mark.slow
def test_joined_norms_leave_projections_fused(pair: Ranks):
    for variants, apart in pair(variants_of_a_pass):
        assert variants == {"composed"}
        assert apart == 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["muon", "lamb"])
def test_a_rule_that_needs_whole_matrices_is_refused_where_they_are_spread(
    tmp_path: Path, pair: Ranks, rule: str
):
    for said in pair(refused, tmp_path / "run", rule):
        assert said.startswith(f"got optim.name='{rule}' with strategy fsdp")
    assert not (tmp_path / "run").exists()


def refused(folder: Path, rule: str) -> str:
    data, chosen = tiny_data(N=30), recipe(optim=Optim(name=rule))
    fabric = open_fabric(device="cpu", precision="32-true", strategy="fsdp")
    model = module.build_model(chosen, data)
    with pytest.raises(ValueError, match="expected adamw, adam or sgd") as error:
        module._open(chosen, folder, data, model, fabric, Silent(), 0)
    return str(error.value)


def stop_after(folder: Path, strategy: str, changes: dict[str, Any], step: int) -> None:
    """A run that a signal to the second device stops, and what is said of it."""

    class Stop(Silent):
        def step(self, position: Any, steps: int, loss: float) -> None:
            if position.step == step:
                raise KeyboardInterrupt

    data, chosen = tiny_data(N=30), recipe(**changes)
    fabric = open_fabric(device="cpu", precision="32-true", strategy=strategy)
    model = in_float64(module.build_model(chosen, data))
    session = module._open(chosen, folder, data, model, fabric, Stop(), 0)
    folder.mkdir(exist_ok=True)
    loop.SAVE_SECONDS = -1.0
    try:
        fit(session)
    except KeyboardInterrupt:
        return
    finally:
        loop.SAVE_SECONDS = 60.0
        fabric.barrier()
    raise AssertionError("nobody stopped it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "changes"),
    [("ddp", {}), ("fsdp", {}), ("ddp", TOGETHER)],
    ids=["ddp", "fsdp", "together"],
)
def test_a_run_on_two_devices_is_resumed_bit_for_bit_and_on_one_to_rounding(
    tmp_path: Path, pair: Ranks, strategy: str, changes: dict[str, Any]
):
    pair(run_one, tmp_path / "whole", strategy, changes)
    pair(stop_after, tmp_path / "two", strategy, changes, 4)
    assert read_run(tmp_path / "two").position.step == 3  # type: ignore[union-attr]
    assert read_run(tmp_path / "two").header.devices == 2  # type: ignore[union-attr]
    (tmp_path / "one").mkdir()
    saved = (tmp_path / "two/last.safetensors").read_bytes()
    (tmp_path / "one/last.safetensors").write_bytes(saved)
    pair(run_one, tmp_path / "two", strategy, changes)
    (_, a), (_, b) = (read(tmp_path / n / "last.safetensors") for n in ("two", "whole"))
    assert [k for k in a if a[k].numpy().tobytes() != b[k].numpy().tobytes()] == []
    run_one(tmp_path / "one", "auto", changes)
    assert_alike(tmp_path / "one", tmp_path / "whole")


def end_of(folder: Path, changes: dict[str, Any], signalled: int) -> tuple[str, str, int]:
    """How a run ends that diverges, or whose second process gets a signal after some steps."""

    class Signal(Silent):
        def step(self, position: Any, steps: int, loss: float) -> None:
            if position.step == signalled and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)

    data, chosen = tiny_data(N=30), recipe(**changes)
    fabric = open_fabric(device="cpu", precision="32-true", strategy="ddp")
    model = module.build_model(chosen, data)
    session = module._open(chosen, folder, data, model, fabric, Signal(), 0)
    folder.mkdir(exist_ok=True)
    try:
        fit(session)
    except (Diverged, Interrupted) as error:
        return type(error).__name__, str(error), session.position.step
    finally:
        fabric.barrier()
    raise AssertionError("it came to its end")


@pytest.mark.slow
def test_all_processes_stop_together_when_one_is_asked_to(tmp_path: Path, pair: Ranks):
    ends = pair(end_of, tmp_path / "run", {}, 4)
    assert ends == [("Interrupted", "", 5)] * 2
    assert read_run(tmp_path / "run").position.step == 5  # type: ignore[union-attr]


@pytest.mark.slow
def test_all_processes_stop_together_when_the_run_diverges(tmp_path: Path, pair: Ranks):
    wild = {"optim": Optim(lr=1e30, warmup=0.0), "epochs": 9}
    (kind, said, step), other = pair(end_of, tmp_path / "run", wild, -1)
    assert (kind, step) == ("Diverged", other[2])
    assert "Layers: not finite: " in said
    assert "A lower optim.lr (now 1e+30)" in said


def too_large_for_one(folder: Path) -> str:
    """What the second process says, whose part of a batch does not fit; the first one is gone."""
    task = Small(2)
    data, chosen = tiny_data(N=30), recipe(batch_size=16)
    fabric = open_fabric(device="cpu", precision="32-true", strategy="ddp")
    model = module.build_model(chosen, data)
    session = module._open(chosen, folder, data, model, fabric, Silent(), 0)
    session.task = task
    if fabric.is_global_zero:
        return ""
    with synchronised(model):  # as in a run
        return str(loop._does_not_fit(session, session.batches.at(0)[0]))


@pytest.mark.slow
def test_the_size_that_fits_is_found_by_one_process_without_waiting_for_the_other(
    tmp_path: Path, pair: Ranks
):
    first, said = pair(too_large_for_one, tmp_path / "run")
    assert first == ""
    assert "a batch of 8 pictures does not fit" in said
    assert "that does is 2. accumulate=4" in said
    assert "leaves batch_size=16 as it is" in said


def test_a_run_that_goes_on_with_another_number_of_devices_says_what_that_means(
    caplog: pytest.LogCaptureFixture,
):
    fabric = Fabric(accelerator="cpu", devices=1)
    with caplog.at_level(logging.INFO, logger="saccade"):
        module._compare_devices(fabric, 1)
        assert not caplog.records
        module._compare_devices(fabric, 2)
    assert "goes on with 1 devices instead of 2: every batch is the same" in caplog.text


X = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(0)).double() * 2 + 3
G = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(1)).double()


def build_norm(**options: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(3, **options).double()
    if norm.affine:
        norm.weight.data = torch.tensor([0.5, 1.5, -2.0]).double()
        norm.bias.data = torch.tensor([0.1, 0.0, -1.0]).double()
    return nn.Sequential(norm)


def normalise(model: nn.Sequential, mine: slice, passes: int = 3) -> list[Tensor]:
    """Output and gradient of the part, gradients of parameters, statistics."""
    x = X[mine].clone().requires_grad_()
    for _ in range(passes):
        y = model(x)
    y.backward(G[mine])
    assert x.grad is not None
    learned = [p.grad for p in model.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *learned, *(b.clone() for b in model.buffers())]


def norm_on_a_share(options: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    fabric = open_fabric(device="cpu", precision="32-true", strategy="ddp")
    model, share = build_norm(**options), share_of(fabric)
    with synchronised(model):
        got = normalise(model, share.of(5))
        with alone(model):
            own = normalise(build_norm(**options), share.of(5), passes=1)
    assert type(model[0]) is nn.BatchNorm2d
    return got, own


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.5}],
    ids=str,
)
def test_the_norm_of_two_uneven_parts_is_that_of_the_joined_batch_forward_and_backward(
    pair: Ranks, options: dict[str, Any]
):
    whole = normalise(build_norm(**options), slice(None))
    (a, alone_a), (b, _) = pair(norm_on_a_share, options)
    affine = options.get("affine", True)
    for n, (ours, other) in enumerate(zip(a, b, strict=True)):
        if n < 2:
            got = torch.cat([ours, other])
        elif affine and n < 4:  # gradients of weight and bias are local, and summed by ddp
            got = ours + other
        else:
            assert torch.equal(ours, other)
            got = ours
        torch.testing.assert_close(got, whole[n], rtol=1e-12, atol=1e-13)
    # on its own, a part has statistics of its own
    assert not torch.allclose(alone_a[0], whole[0][:2], atol=1e-3)


def talk() -> tuple[list[int], str, int]:
    fabric = open_fabric(device="cpu", precision="32-true", strategy="ddp")

    def refuse() -> None:
        raise ValueError(f"refused by {fabric.global_rank}")

    try:
        first_alone(fabric, refuse)
    except ValueError as error:
        said = str(error)
    return gathered(fabric, fabric.global_rank), said, first_alone(fabric, lambda: 7)


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse_with_its_words(pair: Ranks):
    assert pair(talk) == [([0, 1], "refused by 0", 7)] * 2


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_apart_and_together_everything(world: int):
    things = list(range(7))
    shares = [things[Share(rank=r, world=world).of(7)] for r in range(world)]
    assert [thing for share in shares for thing in share] == things
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "dpp"}, r"unknown strategy 'dpp'; did you mean 'ddp'\?"),
        ({"devices": 2}, r"got devices=2 and nodes=1, but this is a single process"),
        ({"devices": 0}, r"got --devices 0, expected 1 or more"),
        ({"strategy": "fsdp"}, r"got strategy fsdp for one device, expected at least 2"),
    ],
)
def test_what_one_process_cannot_do_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        open_fabric(device="cpu", precision="32-true", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, r"got --devices 2, but this machine has 1 GPUs"),
        ({"device": "auto"}, r"got --devices 2, but this machine has 1 GPUs"),
        ({"device": "cpu", "strategy": "fsdp", "precision": "16-mixed"}, "expected bf16-mixed"),
    ],
)
def test_what_the_processes_of_a_run_cannot_do_is_refused_before_they_meet(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
):
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message):
        open_fabric(**{"precision": "32-true", **options})


def resident(size: int, **changes: Any) -> Resident:
    data = tiny_data()
    pictures = Pictures.of(data.train, data, torch.device("cpu"))
    return Resident(pictures, Plan(size=size, seed=3, **changes))


@pytest.mark.parametrize(("size", "pieces"), [(1, 1), (5, 3)])
def test_a_batch_with_fewer_pictures_than_devices_in_a_piece_is_refused(size: int, pieces: int):
    said = f"got batches of {size} for 2 devices and accumulate={pieces}, expected {2 * pieces}"
    with pytest.raises(ValueError, match=said):
        resident(size, share=Share(rank=0, world=2), pieces=pieces)


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_parts_of_a_batch_are_together_the_batch_of_one_device(pieces: int):
    how = {"how": Augment(shift=2, rotate=20, flip=True), "mix": Mix(mixup=1.0), "epochs": 2}
    how |= {"pieces": pieces}
    parts = [resident(7, share=Share(rank=r, world=3), **how) for r in range(3)]
    whole = resident(7, **how)
    for step in (0, 2, 5):
        shared = zip(*(part.at(step) for part in parts), strict=True)
        for ours, piece in zip(shared, whole.at(step), strict=True):
            assert piece.soft is not None
            for name in ("x", "y", "soft"):
                joined = torch.cat([getattr(b, name) for b in ours])
                assert torch.equal(joined, getattr(piece, name))
