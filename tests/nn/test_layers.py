"""Layers: layout, heads, and statistics that pool over time."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from saccade.nn import (
    MLP,
    Head,
    Projection,
    added,
    check_maps,
    merge_heads,
    per_frame,
    project,
    split_heads,
)


def test_merge_heads_undoes_split_heads():
    x = torch.arange(2 * 3 * 8 * 4 * 5.0).reshape(2, 3, 8, 4, 5)
    assert torch.equal(merge_heads(split_heads(x, heads=2), grid=(4, 5)), x)


def test_head_zero_holds_the_first_channels():
    x = torch.arange(8.0).reshape(1, 1, 8, 1, 1)
    assert split_heads(x, heads=2)[0, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_tokens_run_along_rows():
    x = torch.arange(6.0).reshape(1, 1, 1, 2, 3)
    assert split_heads(x, heads=1)[0, 0, 0, :, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_per_frame_keeps_steps_and_samples_apart():
    x = torch.arange(2 * 3 * 4.0).reshape(2, 3, 1, 2, 2)
    y = per_frame(lambda frames: frames.sum((1, 2, 3), keepdim=True), x)
    assert torch.equal(y, x.sum((2, 3, 4), keepdim=True))


def test_batch_norm_pools_its_statistics_over_time():
    projection = Projection(2, 3)
    x = torch.randn(4, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        projection.train()(x)
        current = projection.conv(x.flatten(0, 1))
    expected = 0.1 * current.mean((0, 2, 3))  # momentum 0.1 from 0
    torch.testing.assert_close(projection.norm.running_mean, expected)


def test_projection_of_a_bigger_kernel_keeps_the_grid():
    assert Projection(2, 3, kernel=3)(torch.zeros(1, 1, 2, 5, 7)).shape == (1, 1, 3, 5, 7)


def test_mlp_changes_channels_where_told():
    assert MLP(4, 8, out=6, neuron="lif")(torch.zeros(2, 1, 4, 3, 3)).shape == (2, 1, 6, 3, 3)


def test_head_averages_the_grid_by_hand():
    head = Head(1, 1)
    torch.nn.init.constant_(head.linear.weight, 2.0)
    torch.nn.init.constant_(head.linear.bias, 1.0)
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 1, 2, 2)
    assert head(x).item() == 2.0 * 3.0 + 1.0


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("shown", [True, False], ids=["picture", "frames"])
@pytest.mark.parametrize("training", [True, False])
def test_a_watched_projection_gives_what_the_fused_one_does(
    pools: bool, shown: bool, training: bool
):
    torch.manual_seed(0)
    plain = Projection(8, 16, kernel=3, bias=True, pools=pools).double().train(training)
    plain.norm.bias.data += 0.8
    watched = deepcopy(plain)
    watched.norm.register_forward_hook(lambda *args: None)
    assert plain.apart() is None
    assert "hook" in watched.apart()
    x = torch.randn(1 if shown else 3, 2, 8, 6, 5).double().expand(3, -1, -1, -1, -1)
    got, want = plain(x), watched(x)
    assert 0.02 < want.mean() < 0.98
    assert torch.equal(got, want)
    for s in (got, want):
        (s * torch.arange(s.numel()).reshape(s.shape).remainder(7)).sum().backward()
    for (name, p), q in zip(plain.named_parameters(), watched.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=name)
    for p, q in zip(plain.buffers(), watched.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_norm_without_momentum_runs_part_by_part():
    layer = Projection(8, 8)
    layer.norm = nn.BatchNorm2d(8, momentum=None)
    assert "momentum" in layer.apart()
    assert layer(torch.randn(2, 1, 8, 3, 3)).shape == (2, 1, 8, 3, 3)


@pytest.mark.parametrize("watch", ["nobody", "the norm", "the layer"])
def test_spikes_are_added_to_a_stream(watch: str):
    torch.manual_seed(0)
    layer, x = Projection(8, 16).double(), torch.randn(3, 2, 8, 4, 4).double()
    layer.norm.bias.data += 0.8
    spikes, heard = layer(x), []
    assert 0.02 < spikes.mean() < 0.98
    if watch != "nobody":
        module = layer if watch == "the layer" else layer.norm
        module.register_forward_hook(lambda module, args, out: heard.append(out))
    stream = torch.arange(3.0).double().reshape(3, 1, 1, 1, 1).expand(3, 2, 16, 4, 4)
    assert torch.equal(added(stream, layer, x), stream + spikes)
    assert torch.equal(added(None, layer, x), spikes)
    if watch == "the layer":
        assert [torch.equal(out, spikes) for out in heard] == [True, True]


def test_a_sum_of_two_shapes_is_refused():
    with pytest.raises(ValueError, match=r"got \[1, 1, 4, 2, 2\] from the neuron, .* 8, 2"):
        added(torch.zeros(1, 1, 8, 2, 2), Projection(8, 4), torch.zeros(1, 1, 8, 2, 2))


@pytest.mark.parametrize("other", ["alike", "another kernel", "watched"])
def test_projections_of_one_input_give_what_each_gives(other: str):
    torch.manual_seed(0)
    layers = [Projection(8, n, kernel=3).double() for n in (16, 8)]
    if other == "another kernel":
        layers.append(Projection(8, 8).double())
    if other == "watched":
        layers[1].register_forward_hook(lambda *args: None)
    x = torch.randn(3, 2, 8, 4, 4).double().requires_grad_()
    outs = []
    for run in (project, lambda layers, x: [layer(x) for layer in layers]):
        spikes = run(layers, x)
        parts = [x, *(layer.conv.weight for layer in layers)]
        loss = sum((s * torch.arange(s.numel()).view(s.shape).remainder(7)).sum() for s in spikes)
        outs.append((spikes, torch.autograd.grad(loss, parts)))
    for got, want in zip(*outs, strict=True):
        torch.testing.assert_close(list(got), list(want))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(4, 2, 35, 64),
            r"\[4, 2, 35, 64\], .* tokens \[T, B, N, C\] are x\.mT\.unflatten",
        ),
        (torch.zeros(4, 2, 32, 7, 5), r"\[4, 2, 32, 7, 5\], expected \[T, B, 64, H, W\]"),
        (torch.zeros(2, 64, 7, 5), r"\[2, 64, 7, 5\], expected \[T, B, 64, H, W\]"),
        (torch.zeros(4, 2, 64, 7, 5).long(), r"torch\.int64, expected floating point"),
    ],
    ids=["tokens", "channels", "one step", "integers"],
)
def test_input_that_is_no_map_is_refused(x: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        check_maps(x, 64)


def test_tokens_become_maps_as_the_message_says():
    tokens = torch.rand(4, 2, 35, 64)
    maps = tokens.mT.unflatten(-1, (7, 5))
    check_maps(maps, 64)
    assert torch.equal(maps[1, 1, :, 2, 3], tokens[1, 1, 2 * 5 + 3])
