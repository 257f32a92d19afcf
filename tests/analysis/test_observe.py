"""What a few samples do inside a model, kept for pictures."""

import numpy as np
import torch

from saccade.analysis import observe
from saccade.models import create_model
from tests.awake import awake


def test_maps_rasters_and_responses_are_those_of_the_run():
    model = create_model("spikformer", dim=16, depth=2, heads=2, image_size=(16, 8), T=3)
    awake(model).eval()
    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    arrays = observe(model, x, neurons=10, layers=3, responses=2)
    assert arrays["grid"].tolist() == [4, 2]
    assert arrays["attention_1"].shape == (2, 3, 2, 8, 8)
    assert str(arrays["attention_1_path"]) == "blocks.1.attention"
    assert [str(arrays[f"raster_{i}_path"]) for i in (0, 2)] == [
        "stem.stages.0.neuron",
        "blocks.1.mlp.fc2.neuron",
    ]
    assert arrays["raster_0"].shape == (2, 3, 10)
    assert set(np.unique(arrays["raster_0"])) == {0, 1}
    spikes = model.stem.stages[0](x.expand(3, *x.shape))
    expected = spikes.mean((0, 2)).detach().numpy()
    np.testing.assert_allclose(arrays["response_0"], expected, rtol=1e-6)
    with torch.no_grad():
        tokens = model.stem(x.expand(3, *x.shape))
        scores = model.blocks[0].attention.scores(tokens)
    np.testing.assert_array_equal(arrays["attention_0"], scores.transpose(0, 1).numpy())


def test_nothing_is_left_hooked():
    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8)
    observe(model.eval(), torch.rand(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
