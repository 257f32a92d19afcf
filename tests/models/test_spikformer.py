"""Spikformer's sizes against the paper, and its keys against the official listings."""

from pathlib import Path

import pytest
import torch

from saccade.models import MODELS, create_model
from saccade.models.spikformer import KEYS

# parameters without those that the official forward never reads, and heads
SIZES = {
    "spikformer_4_256": (4_155_178, 8),
    "spikformer_2_384": (5_765_050, 12),
    "spikformer_4_384": (9_324_730, 12),
    "spikformer_2_256_dvs": (2_566_666, 16),
    "spikformer_8_384": (16_816_024, 8),
    "spikformer_6_512": (23_373_352, 8),
    "spikformer_8_512": (29_689_384, 8),
    "spikformer_10_512": (36_005_416, 8),
    "spikformer_8_768": (66_338_632, 12),
}
LISTINGS = {
    "spikformer_4_256": "cifar_4_256",
    "spikformer_2_384": "cifar_2_384",
    "spikformer_4_384": "cifar_4_384",
    "spikformer_2_256_dvs": "cifar10dvs_2_256",
    "spikformer_8_384": "imagenet_8_384",
    "spikformer_6_512": "imagenet_6_512",
    "spikformer_8_512": "imagenet_8_512",
    "spikformer_10_512": "imagenet_10_512",
    "spikformer_8_768": "imagenet_8_768",
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_equal_the_papers(name: str):
    with torch.device("meta"):
        model = create_model(name)
    parameters, heads = SIZES[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.heads == heads


def test_a_hundred_classes_count_too():
    with torch.device("meta"):
        model = create_model("spikformer_4_384", num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == 9_359_380


@pytest.mark.parametrize("name", LISTINGS)
def test_the_key_map_is_exact_on_the_official_listing(name: str, golden: Path):
    listing = golden / "keys" / f"keys_spikformer_{LISTINGS[name]}.txt"
    official = {}
    for line in listing.read_text().splitlines():
        key, shape, _ = line.split("\t")
        official[key] = torch.empty(
            [int(n) for n in shape.strip("()").split(",") if n.strip()], device="meta"
        )
    with torch.device("meta"):
        ours = create_model(name).state_dict()
    state = KEYS.load(official, ours)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.items()}


def test_cifar_blocks_start_as_the_official_linear_layers_do():
    torch.manual_seed(0)
    block = create_model("spikformer_4_384", depth=1).blocks[0]
    assert block.mlp.fc1.conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not block.attention.q.conv.bias.any()
    dvs = create_model("spikformer_2_256_dvs", depth=1).blocks[0]
    # torch's convolutions: uniform within 1/sqrt(fan-in), so sd = 1/sqrt(3 * 256)
    assert dvs.mlp.fc1.conv.weight.std().item() == pytest.approx((3 * 256) ** -0.5, rel=0.02)


def test_published_results_are_there():
    rows = {(r.dataset, r.metric): r.value for r in MODELS["spikformer_8_512"].results}
    assert rows["ImageNet, 224 px", "top-1 %"] == 73.38
    assert rows["ImageNet, 224 px", "energy (mJ)"] == 11.577
