"""Counts of spikes and operations, against counting by hand."""

import pytest
import torch
from torch import nn

from saccade.analysis import HOROWITZ_45NM, Energy, record
from saccade.attention import ATTENTION, Site, install
from saccade.models import create_model
from saccade.nn import IF
from tests.awake import awake


class Tiny(nn.Module):
    """One convolution, one neuron, one linear map; takes [B C H W] for two steps, or frames."""

    def __init__(self, conv: nn.Conv2d, out: int = 3) -> None:
        super().__init__()
        self.conv, self.fire, self.linear = (
            conv,
            IF(v_threshold=0.5),
            nn.LazyLinear(out, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.dim() == 5 else x.expand(2, *x.shape)
        current = self.conv(x.flatten(0, 1))
        spikes = self.fire(current.reshape(*x.shape[:2], *current.shape[1:]))
        logits: torch.Tensor = self.linear(spikes.flatten(2)).mean(0)
        return logits


def tiny(conv: nn.Conv2d, x: torch.Tensor) -> Tiny:
    model = Tiny(conv)
    nn.init.constant_(model.conv.weight, 1.0)
    model(x)
    return model


def rows(model: nn.Module, *inputs: torch.Tensor) -> dict[str, dict]:
    with record(model) as seen, torch.no_grad():
        for x in inputs:
            model(x)
    return {row["path"]: row for row in seen.table()}


def test_an_integer_n_is_n_additions_at_every_weight_that_it_meets():
    # 3x3 kernel, padding 1, 2 output channels: the corner pixel meets 4 positions of the kernel,
    # the centre pixel of a 3x3 image all 9
    x = torch.zeros(1, 1, 1, 3, 3)
    x[..., 0, 0], x[..., 1, 1] = 3.0, 2.0
    conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    row = rows(tiny(conv, x), x)["conv"]
    assert row["sops"] == (3 * 4 + 2 * 9) * 2
    assert row["macs"] == 0


def test_additions_are_counted_in_inference_mode_too():
    x = torch.ones(1, 1, 1, 3, 3)
    model = tiny(nn.Conv2d(1, 2, 3, padding=1, bias=False), x)
    want = rows(model, x)["conv"]["sops"]
    with torch.inference_mode(), record(model) as seen:
        model(x)
    (row,) = [row for row in seen.table() if row["path"] == "conv"]
    assert row["sops"] == want == 2 * (4 * 4 + 4 * 6 + 9)


@pytest.mark.parametrize(
    ("kwargs", "channels", "expected"),
    [
        ({"kernel_size": 1}, 4, 16 * 4 * 6),  # each of 16 pixels x 4 channels meets 6 filters
        ({"kernel_size": 2, "stride": 2}, 4, 16 * 4 * 6),  # each pixel meets one place of it
        ({"kernel_size": 1, "groups": 2}, 4, 16 * 4 * 3),  # a group has 3 filters
        ({"kernel_size": 3, "dilation": 2}, 4, 0),  # filled in below by brute force
    ],
)
def test_strides_groups_and_dilation_equal_counting_with_ones(kwargs, channels, expected):
    if kwargs.get("dilation"):
        kwargs = kwargs | {"padding": 2}
    conv = nn.Conv2d(channels, 6, bias=False, **kwargs)
    x = torch.ones(1, 1, channels, 4, 4)
    nn.init.constant_(conv.weight, 1.0)
    by_ones = conv(x[0]).sum().item()  # every weight 1, every input 1: the sum is the count
    assert rows(tiny(conv, x), x)["conv"]["sops"] == by_ones
    if expected:
        assert by_ones == expected


def test_a_picture_shown_twice_is_multiplied_once():
    conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    still = torch.rand(4, 1, 3, 3) + 0.1
    model = tiny(conv, still)
    assert rows(model, still)["conv"]["macs"] == 9 * 9 * 2
    moving = torch.stack([still, still * 0.5])
    assert rows(model, moving)["conv"]["macs"] == 2 * 9 * 9 * 2


def test_firing_rates_and_linear_additions_by_hand():
    # weights 1, one pixel of 0.25: current 0.25 charges an IF of threshold 0.5 to fire at step 2
    x = torch.full((1, 1, 1, 1), 0.25)
    model = tiny(nn.Conv2d(1, 2, 1, bias=False), x)
    with record(model) as seen, torch.no_grad():
        model(x)
    assert seen.rates() == {"fire": [0.0, 1.0]}
    assert seen.mean_rates() == {"fire": 0.5}
    linear = {row["path"]: row for row in seen.table()}["linear"]
    assert linear["sops"] == 2 * 3  # two spikes meet three outputs
    assert linear["input_rate"] == 0.5
    assert linear["paper_sops"] == 0.5 * (2 * 2 * 3)  # rate * T * FLOPs


def test_counts_are_per_image_whatever_the_batches():
    model = awake(create_model("spikformer", dim=16, depth=1, heads=2, image_size=8, T=2)).eval()
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together, apart = rows(model, x), rows(model, x[:2], x[2:])
    for path, row in together.items():
        for column in ("sops", "macs", "paper_sops", "paper_macs", "input_rate"):
            assert apart[path][column] == pytest.approx(row[column], rel=1e-9), (path, column)


def test_calls_of_other_lengths_and_calls_that_fail():
    model = awake(create_model("spikformer", dim=16, depth=1, heads=2, image_size=8, T=2)).eval()
    x = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with record(model) as seen:
        model(x)
        model(x=x[:3])
        with pytest.raises(ValueError, match="got input of shape"):
            model(x[..., :5])
        hook = model.head.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        hook.remove()
    assert seen.images == 4
    apart = [rows(model, x), rows(model, x[:3])]
    for row in seen.table():
        both = [a[row["path"]]["sops"] for a in apart]
        assert row["sops"] == pytest.approx(sum(both) / 2)
    with record(model) as first:
        model(x)
    path, last = "stem.stages.0.neuron", -1
    assert len(seen.rates()[path]) == 4
    assert seen.rates()[path][last] == pytest.approx(first.rates()[path][last])
    model(x)


def test_the_convolution_of_tim_is_counted():
    site = Site(dim=8, heads=2, T=3, grid=(2, 2))
    tim = awake(install(site, "tim")).eval()
    x = (torch.rand(3, 1, 8, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    heard = []
    tim.inner.query.conv.register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    table = rows(tim, x)
    kernel, tokens = tim.inner.query.conv.kernel_size[0], 4
    # a spike in the middle meets every tap, at the border fewer: by hand, over 4 places of a head
    taps = [sum(0 <= d + k - kernel // 2 < 4 for k in range(kernel)) for d in range(4)]
    by_hand = sum(float(h.sum((0, 1)) @ torch.tensor(taps).float()) for h in heard) * tokens
    assert by_hand > 0
    assert table["inner.query.conv"]["sops"] == pytest.approx(by_hand)


def test_a_whole_model_has_every_layer_and_changes_nothing():
    model = awake(create_model("spikformer", dim=16, depth=1, heads=2, image_size=16, T=2)).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = model(x)
    with record(model) as seen:
        assert torch.equal(model(x), before)
        model.forward_steps(x)
    assert seen.images == 4
    table = seen.table()
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {row["path"] for row in table} == layers | {"blocks.0.attention (ssa_mix)"}
    first = table[0]
    assert (first["sops"], first["macs"]) == (0, 3 * 2 * 9 * 256)
    assert (first["paper_sops"], first["paper_macs"]) == (0, 3 * 2 * 9 * 256)
    assert all(row["sops"] > 0 for row in table[1:-1])
    totals = seen.totals()
    assert totals["sops"] == pytest.approx(sum(row["sops"] for row in table))
    assert totals["energy_mj"] == pytest.approx(
        (0.9 * totals["sops"] + 4.6 * totals["macs"]) * 1e-9
    )
    assert model(x).equal(before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_constants_have_names():
    assert (HOROWITZ_45NM.ac_pj, HOROWITZ_45NM.mac_pj) == (0.9, 4.6)
    assert Energy(ac_pj=1.0, mac_pj=2.0, note="").millijoules(1e9, 1e9) == pytest.approx(3.0)


@pytest.mark.parametrize("name", ATTENTION.list())
def test_every_product_of_every_attention_is_counted(name: str):
    if ATTENTION[name].kind == "gate":
        model = create_model("ma_gesture_3", attention=name, T=2)
    else:
        model = create_model("spikformer", attention=name, T=2, image_size=8, dim=16, depth=1)
    with record(model.eval()) as seen, torch.no_grad():
        model(torch.rand(2, 1, *model.frame))
    assert seen.totals()["uncounted"] == []


def test_a_product_in_plain_torch_is_named():
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(2)
            return (torch.einsum("tbn,tbm->tbnm", rows, rows) @ rows[..., None]).view(x.shape)

    model = create_model("spikformer", T=2, image_size=8, dim=16, depth=2)
    model.blocks[1].attention = Plain()
    with record(model.eval()) as seen, torch.no_grad():
        model(torch.rand(1, 3, 8, 8))
        model(torch.rand(1, 3, 8, 8))
    where = "blocks.1.attention"
    assert seen.totals()["uncounted"] == [f"einsum in {where}", f"matmul in {where}"]
