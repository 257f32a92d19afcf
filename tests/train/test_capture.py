"""A recorded step is the step: what a CUDA graph replays, replayed here by calling it again."""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saccade.data import Augment, Mix
from saccade.train import Diverged, Interrupted, flight, loop, run, train
from saccade.train.capture import WARM, Recorded, refusal
from saccade.train.curriculum import Sharpness, Stage
from saccade.train.devices import open_fabric
from saccade.train.memory import TooLarge
from saccade.train.optim import OPTIMIZER, make_optimizer, make_recordable
from saccade.train.recipe import Average, Optim
from saccade.train.session import Session
from saccade.train.step import Step, Told
from saccade.train.tasks import Batch, make_task
from saccade.train.tasks.classify import Classify
from tests.train.test_diagnose import Poisoned, spoil_attention, spoil_head
from tests.train.test_memory import Small
from tests.train.test_resume import At
from tests.train.tiny import (
    assert_same_run,
    header,
    log_rows,
    opened,
    tensors,
    tiny_data,
    tiny_recipe,
    use,
)


class Again:
    """Records a function by keeping it: replayed, it works on the memory that it was given."""

    def __init__(self, device: torch.device) -> None:
        self.warmed, self.recorded = 0, 0

    def warm(self, run: Callable[[], None]) -> None:
        self.warmed += 1
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        return run


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Again]:
    """Runs record their steps, hear of them a step late, and leave their recorders here."""
    made: list[Again] = []

    def make(device: torch.device) -> Again:
        made.append(Again(device))
        return made[-1]

    monkeypatch.setattr(flight, "CudaGraphs", make)
    monkeypatch.setattr(flight, "_late", lambda s: 1)
    monkeypatch.setattr(run, "refusal", lambda fabric, recipe, task: "")
    monkeypatch.setattr(run, "make_optimizer", plain_rules(run.make_optimizer))
    use(monkeypatch, tiny_data())
    return made


def plain_rules(make: Callable[..., Any]) -> Callable[..., Any]:
    """torch's fused rules round otherwise on a CPU."""
    return lambda model, optim, recorded: make(model, optim)


EVERYTHING = {
    "task": {"name": "tet", "label_smoothing": 0.1},
    "average": Average(decay=0.8, warmup=2.0),
    "mix": Mix(mixup=0.5, cutmix=1.0, probability=0.6, until=0.8),
    "curriculum": (Stage(until=0.3, T=1), Stage(until=0.6, T=3, size=4, sharpness=0.5)),
    "accumulate": 3,
    "epochs": 5,
}


@pytest.mark.parametrize("rule", OPTIMIZER.list())
def test_a_run_whose_steps_are_recorded_comes_to_what_one_of_single_operations_comes_to(
    tmp_path: Path, graphs: list[Again], monkeypatch: pytest.MonkeyPatch, rule: str
):
    optim = Optim(name=rule, lr=1e-3, clip=1.0)
    recipe = tiny_recipe(**EVERYTHING | {"optim": optim, "mix": Mix()})
    train(recipe, tmp_path / "recorded")
    # three kinds of steps: 4 or 5 of each, of which the first ones only warm up
    assert [(g.warmed, g.recorded) for g in graphs] == [(3 * WARM, 3)]
    monkeypatch.setattr(run, "refusal", lambda *given: "said so")
    monkeypatch.setattr(flight, "_late", lambda s: 0)
    train(recipe, tmp_path / "plain")
    assert len(graphs) == 1
    a, b = (tensors(tmp_path / n / "last.safetensors") for n in ("recorded", "plain"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(*(log_rows(tmp_path / n) for n in ("recorded", "plain")), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert (ours["accuracy"], ours["step"]) == (theirs["accuracy"], theirs["step"])


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_a_recorded_run_that_is_stopped_anywhere_is_resumed_exactly(
    tmp_path: Path, graphs: list[Again], monkeypatch: pytest.MonkeyPatch, rule: str
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    recipe = tiny_recipe(**EVERYTHING | {"optim": Optim(name=rule, lr=1e-2)})
    train(recipe, tmp_path / "whole")

    def crash() -> None:
        raise KeyboardInterrupt

    for step in range(1, 16, 2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "dying", resume=True, progress=At(step, crash))
    train(recipe, tmp_path / "dying", resume=True)
    assert_same_run(tmp_path / "dying", tmp_path / "whole")


def test_a_run_goes_on_recorded_where_it_was_not_and_the_other_way_round(
    tmp_path: Path, graphs: list[Again], monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny_recipe(optim=Optim(name="lamb", lr=1e-2), epochs=4)
    train(recipe, tmp_path / "whole")

    def interrupt(step: int, **how: Any) -> None:
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", progress=At(step, lambda: stop()), **how)

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run, "refusal", lambda *given: "said so")
        interrupt(2)
    interrupt(7, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(run, "refusal", lambda *given: "said so")
        train(recipe, tmp_path / "run", resume=True)
    a, b = (tensors(tmp_path / n / "last.safetensors") for n in ("run", "whole"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_where_nobody_waits_a_signal_saves_the_last_step_that_was_launched(
    tmp_path: Path, graphs: list[Again]
):
    seen: list[tuple[int, float]] = []

    class Watch(At):
        def step(self, position: Any, steps: int, loss: float) -> None:
            seen.append((position.step, loss))
            super().step(position, steps, loss)

    stop = Watch(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny_recipe(), tmp_path, progress=stop)
    # heard of step 4 when step 5 was under way
    assert header(tmp_path / "last.safetensors")["position"]["step"] == 5
    assert [n for n, _ in seen] == [1, 2, 3, 4, 5]
    assert len({loss for _, loss in seen}) == 5  # nobody read the sums of another step


@pytest.mark.parametrize("at", [2, 5, 8])
@pytest.mark.parametrize(
    ("spoil", "what", "layer"),
    [
        (spoil_head, "the loss became nan", "head.linear.weight (weights)"),
        (
            spoil_attention,
            "the gradient stopped being finite",
            "blocks.0.attention.q.conv.weight (weights)",
        ),
    ],
)
def test_a_bad_step_that_is_heard_of_late_is_named_and_moves_no_weight_away(
    tmp_path: Path,
    graphs: list[Again],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[nn.Module], None],
    what: str,
    layer: str,
    at: int,
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(run, "make_task", lambda part: Poisoned(at, spoil))
    models: list[nn.Module] = []
    build = run.build_model
    monkeypatch.setattr(run, "build_model", lambda *a: models.append(build(*a)) or models[-1])
    with pytest.raises(Diverged) as error:
        train(tiny_recipe(), tmp_path)
    where = f"{what} at step {at - 1} (epoch {(at - 1) // 3 + 1}). Layers: not finite: {layer}"
    assert str(error.value).startswith(where)
    saved = tmp_path / "last.safetensors"
    assert saved.exists() == (at > 2)
    if saved.exists():
        assert at - 3 <= header(saved)["position"]["step"] <= at - 1
        assert all(t.isfinite().all() for t in tensors(saved).values())
    spoiled = layer.removesuffix(" (weights)")
    for name, p in models[0].named_parameters():
        assert p.isfinite().all() or name == spoiled, name


class NotFinite(Classify):
    """A sound loss whose gradient is too long for float32 in one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        result = super().__call__(model, batch)
        if self.calls == self.at:
            steep = result["loss"] * 1e30
            result["loss"] = result["loss"].detach() + steep - steep.detach()
        return result


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_overflows_once_leaves_weights_finite_though_steps_follow(
    tmp_path: Path, graphs: list[Again], monkeypatch: pytest.MonkeyPatch, clip: float
):
    task = NotFinite(4)
    monkeypatch.setattr(run, "make_task", lambda part: task)
    models: list[nn.Module] = []
    build = run.build_model
    monkeypatch.setattr(run, "build_model", lambda *a: models.append(build(*a)) or models[-1])
    with pytest.raises(Diverged, match=r"gradient stopped being finite at step 3 \(epoch 2\)"):
        train(tiny_recipe(optim=Optim(lr=1e-2, clip=clip)), tmp_path)
    assert task.calls == 5  # one more was under way
    assert all(p.isfinite().all() for p in models[0].parameters())


def recorded(folder: Path, **changes: Any) -> tuple[Session, Recorded, Again]:
    s = opened(folder, tiny_recipe(augment=Augment(), **changes))
    make_recordable(s.optimizer, s.fabric.device)
    recorder = Again(s.fabric.device)
    return s, Recorded(Step(s), recorder, Sharpness(s.model), soft=False), recorder


def told(n: int) -> Told:
    return Told(share=0.5, n=n, mine=torch.tensor([8.0, 0.0, 0.0], dtype=torch.float64))


def test_pictures_and_numbers_are_copied_in_and_the_sums_are_written_over(tmp_path: Path):
    s, take, recorder = recorded(tmp_path)
    batches = [s.batches.at(n) for n in range(WARM + 2)]
    memory = set()
    for n, pieces in enumerate(batches):
        said = take(pieces, told(n + 1))
        (held,) = take.pieces
        assert torch.equal(held.x, pieces[0].x)
        assert torch.equal(held.y, pieces[0].y)
        assert take.numbers.tolist() == [0.5, n + 1, 8.0, 0.0, 0.0]
        memory.add((held.x.data_ptr(), held.y.data_ptr(), said.data_ptr()))
        assert held.x.data_ptr() != pieces[0].x.data_ptr()
    assert len(memory) == 1
    assert (recorder.warmed, recorder.recorded) == (WARM, 1)
    rates = [float(group["lr"]) for group in s.optimizer.param_groups]
    assert rates == [0.5 * group["peak_lr"] for group in s.optimizer.param_groups]


def test_recording_is_not_a_step(tmp_path: Path):
    """It changes neither weights nor statistics, counters or the optimiser's state."""
    s, take, recorder = recorded(tmp_path)
    for n in range(WARM):
        take(s.batches.at(n), told(n + 1))

    def state() -> list[Tensor]:
        slots = [t for v in s.optimizer.state.values() for t in v.values()]
        return [t.clone() for t in (*s.model.state_dict().values(), *slots)]

    before, inside = state(), []

    def record(run: Callable[[], None]) -> Callable[[], None]:
        inside.extend(state())
        return lambda: None

    recorder.record = record  # type: ignore[method-assign]
    take(s.batches.at(WARM), told(WARM + 1))
    for seen in (inside, state()):
        assert all(torch.equal(a, b) for a, b in zip(before, seen, strict=True))


def test_another_kind_of_step_is_recorded_anew_and_a_mixed_one_is_no_other_kind(tmp_path: Path):
    s, _, _ = recorded(tmp_path, mix=Mix(mixup=1.0))
    recorder, sharpness = Again(s.fabric.device), Sharpness(s.model)
    take = Recorded(Step(s), recorder, sharpness, soft=True)
    (mixed,) = s.batches.at(0)
    assert mixed.soft is not None
    for n in range(6):
        take([mixed if n % 2 else replace(mixed, soft=None)], told(n + 1))
    assert (recorder.warmed, recorder.recorded) == (WARM, 1)
    hard = take.pieces[0].soft
    take([replace(mixed, soft=None)], told(7))
    assert hard is not None
    assert torch.equal(hard.argmax(1), mixed.y)
    assert torch.equal(hard.sum(1), torch.ones(8))
    sharpness.set(0.5)
    take([mixed], told(8))
    take([replace(mixed, T=1)], told(9))
    assert recorder.warmed == WARM + 2


@pytest.mark.parametrize("cause", ["Cannot copy between CPU and CUDA tensors", "not permitted"])
def test_what_cannot_be_recorded_runs_on_and_the_reason_is_said_once(
    tmp_path: Path,
    graphs: list[Again],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cause: str,
):
    def refuse(self: Again, run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError(f"{cause}\nand more")

    recipe = tiny_recipe()
    train(recipe, tmp_path / "recorded")
    monkeypatch.setattr(Again, "record", refuse)
    with caplog.at_level(logging.INFO, logger="saccade"):
        train(recipe, tmp_path / "run")
    said = [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()]
    assert said == [
        "each step runs one operation at a time, not as one CUDA graph: recording it failed: "
        f"{cause}"
    ]
    assert_same_run(tmp_path / "run", tmp_path / "recorded")


def test_memory_that_ends_while_a_step_is_recorded_is_answered_with_what_fits(
    tmp_path: Path, graphs: list[Again], monkeypatch: pytest.MonkeyPatch
):
    task = Small(8)
    monkeypatch.setattr(run, "make_task", lambda part: task)

    def record(self: Again, run: Callable[[], None]) -> Callable[[], None]:
        task.room = 4
        try:
            run()
        finally:  # as the end of a recording does
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(Again, "record", record)
    with pytest.raises(TooLarge, match=r"largest tried that does is 4\. accumulate=2 takes it"):
        train(tiny_recipe(), tmp_path)


def test_a_run_on_a_cpu_says_that_its_steps_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    use(monkeypatch, tiny_data())
    with caplog.at_level(logging.INFO, logger="saccade"):
        train(tiny_recipe(), tmp_path)
    assert [r.getMessage() for r in caplog.records] == [
        "each step runs one operation at a time, not as one CUDA graph: the device is cpu, not cuda"
    ]


def test_why_steps_are_not_recorded(monkeypatch: pytest.MonkeyPatch):
    fabric = open_fabric(device="cpu", precision="32-true")
    monkeypatch.setattr(type(fabric), "device", torch.device("cuda"))
    recipe, task = tiny_recipe(), make_task({"name": "classify"})
    assert refusal(fabric, recipe, task) == ""
    assert "16-mixed" in refusal(fabric, replace(recipe, precision="16-mixed"), task)
    monkeypatch.setattr(type(task), "repeats", False)
    assert refusal(fabric, recipe, task).startswith("task 'classify' does not do the same")


def test_torchs_own_rules_keep_their_numbers_on_the_device_where_steps_are_recorded(tmp_path: Path):
    model = nn.Linear(3, 2)
    for name in OPTIMIZER.list():
        if name == "muon":
            continue
        plain = make_optimizer(model, Optim(name=name))
        ours = make_optimizer(model, Optim(name=name), recorded=True)
        for group, other in zip(ours.param_groups, plain.param_groups, strict=True):
            for key in ("fused", "capturable"):
                assert group.get(key, True) is True
                assert not other.get(key)
        make_recordable(ours, torch.device("cpu"))
        assert all(isinstance(group["lr"], Tensor) for group in ours.param_groups)
    sgd = make_optimizer(model, Optim(name="sgd"), recorded=True)
    make_recordable(sgd, torch.device("cpu"))
    assert [float(s["momentum_buffer"].abs().sum()) for s in sgd.state.values()] == [0.0, 0.0]
