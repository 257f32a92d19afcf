"""Spikformer V2 after the abstract: parameter counts are all that is public."""

import pytest
import torch

from saccade.models import create_model

# in millions; 8-384 follows from the other two by scaling with D^2
REPORTED = {
    "spikformer_v2_8_384": 29.11,
    "spikformer_v2_8_512": 51.55,
    "spikformer_v2_16_768": 172.3,
}


@pytest.mark.parametrize("name", REPORTED)
def test_parameters_meet_the_published_count_within_one_percent(name: str):
    with torch.device("meta"):
        model = create_model(name)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(REPORTED[name], rel=0.01)


def test_the_stem_is_configurable():
    model = create_model(
        "spikformer_v2_8_384",
        dim=16,
        depth=1,
        image_size=(32, 16),
        stem={"name": "scs", "repeats": 0, "expansion": 0},
    )
    assert model.stem.grid == (2, 1)
    assert len(model.stem.stages) == 4
    assert model(torch.rand(1, 3, 32, 16)).shape == (1, 1000)
