"""Ops are timed beside their references, and only where they are equal."""

import json
from collections.abc import Iterator

import pytest
import torch

import saccade.attention  # noqa: F401  (registers the ops)
from saccade.bench import Settings, Unequal, bench_ops, interleaved, require_equal
from saccade.bench.memory import peak
from saccade.bench.ops import least_bytes
from saccade.bench.sizes import MAKE, SIZES, arguments
from saccade.bench.timing import Timing
from saccade.ops import OPS, Op

CPU = torch.device("cpu")
QUICK = Settings(device="cpu", n=2)


@pytest.fixture
def doubling() -> Iterator[Op]:
    op = Op("doubling", lambda x: 2 * x, lambda: (torch.arange(4.0),))
    yield op
    del OPS["doubling"]


def test_every_op_can_be_given_arguments_of_a_size():
    assert MAKE.keys() <= OPS.keys()
    for op in OPS.values():
        args = arguments(op, "small", CPU, torch.float32)
        assert op.name not in MAKE or args[0].numel() > 1000, op.name
        assert op.reference(*args) is not None


def test_rows_hold_times_ratios_and_the_reasons_of_refusals():
    result = bench_ops("[cl]*", size="small", settings=QUICK)
    rows = {(r["op"], r["pass"], r["variant"]): r for r in result.rows}
    reference = rows["lif", "forward", "reference"]
    assert reference["ratio"] == 1
    assert reference["n"] == 2
    fast = rows["lif", "both", "analytic"]
    assert fast["ratio"] == pytest.approx(
        rows["lif", "both", "reference"]["median_s"] / fast["median_s"]
    )
    assert 0 < fast["min_s"] <= fast["median_s"] <= fast["max_s"]
    assert "cuda" in rows["conv", "forward", "packed"]["refused"]
    assert result.conditions["hardware"]["device"] == "cpu"
    assert result.conditions["versions"]["torch"] == torch.__version__
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_variant_with_other_values_is_not_timed(doubling: Op):
    doubling.fast("wrong", refuses=lambda x: None)(lambda x: 2 * x + 1e-6)
    with pytest.raises(Unequal, match=r"doubling: values 0 of 'wrong' differ .* not timed"):
        bench_ops("doubling", settings=QUICK)


def test_a_variant_with_other_gradients_is_not_timed(doubling: Op):
    doubling.fast("wrong", refuses=lambda x: None)(lambda x: x + x.detach())
    with pytest.raises(Unequal, match="gradients 0 of 'wrong' differ"):
        require_equal(doubling, "wrong", CPU)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_equal(doubling: Op, bad: float):
    doubling.fast("wrong", refuses=lambda x: None)(lambda x: 2 * x + bad)
    with pytest.raises(Unequal):
        require_equal(doubling, "wrong", CPU)


def test_a_tolerance_that_the_op_declares_is_kept(doubling: Op):
    doubling.fast("near", refuses=lambda x: None, tolerance=1e-3)(lambda x: 2 * x + 1e-4)
    require_equal(doubling, "near", CPU)


def test_a_variant_that_refuses_its_own_example_is_not_timed(doubling: Op):
    doubling.fast("shy", refuses=lambda x: "too few" if len(x) < 9 else None)(lambda x: 2 * x)
    with pytest.raises(Unequal, match="refuses the op's own example: too few"):
        require_equal(doubling, "shy", CPU)


def test_an_op_without_sizes_is_timed_on_its_example_and_it_says_so(doubling: Op):
    result = bench_ops("doubling", settings=QUICK)
    assert [r["variant"] for r in result.rows] == ["reference", "reference"]
    assert any("doubling has no sizes" in note for note in result.notes)


def test_least_bytes_by_hand():
    x = torch.zeros(10)
    assert least_bytes((x, 1.0), torch.zeros(5), False) == 40 + 20
    x.requires_grad_()
    assert least_bytes((x, 1.0), torch.zeros(5), True) == (40 + 20) + (20 + 40)


def test_calls_take_turns_forth_and_back():
    heard: list[str] = []

    def step(name: str):
        def run() -> None:
            heard.append(name)
            sum(range(200_000))  # longer than the shortest sample

        return run

    times = interleaved({"a": step("a"), "b": step("b")}, CPU, n=2, warmup=1)
    assert heard[-4:] == ["a", "b", "b", "a"]
    assert len(times["a"].seconds) == 2


def test_a_short_call_is_repeated_within_a_sample():
    calls = []
    interleaved({"a": lambda: calls.append(1)}, CPU, n=1)
    assert len(calls) > 100


def test_quartiles_by_hand():
    t = Timing((1.0, 2.0, 3.0, 4.0, 5.0))
    assert (t.median, t.quartiles()) == (3.0, (2.0, 4.0))
    assert Timing((2.0,)).quartiles() == (2.0, 2.0)


def test_peak_adds_up_what_lives_at_the_same_time():
    x = torch.zeros(1000)

    def call() -> torch.Tensor:
        a = x + 1
        b = a + 1
        del a
        return b + 1

    assert peak(call, CPU, [x]) == 2 * 4000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "unknown precision 'bf16'; did you mean 'bfloat16'"),
        ({"n": 0}, "got n=0"),
        ({"device": "cpu", "graph": True}, "CUDA graph on cpu"),
    ],
)
def test_settings_that_cannot_be(options, message: str):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown size 'smal'; did you mean 'small'"):
        bench_ops(size="smal", settings=QUICK)
    with pytest.raises(ValueError, match="no op matches 'liff'; did you mean 'lif'"):
        bench_ops("liff", settings=QUICK)
    assert set(SIZES) == {"small", "cifar", "imagenet", "large"}
