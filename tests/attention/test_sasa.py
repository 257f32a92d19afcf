"""What is special to SASA: three readings of the sum, two carriers, places of the DWC."""

from pathlib import Path

import pytest
import torch

from saccade import load
from saccade.attention import Site, create_attention
from saccade.attention.sasa import DWC, SASA, aggregate_spikes
from saccade.models import create_model, describe, rebuild
from saccade.train import save_weights
from saccade.train.recipe import parse_recipe
from tests.awake import awake, spikes


def test_the_sums_are_the_printed_ones():
    q, k = spikes(2, 1, 2, 5, 3, seed=1), spikes(2, 1, 2, 5, 3, seed=2)
    for t, h in ((0, 0), (1, 1)):
        for n in range(5):
            expected = sum(q[t, 0, h, n, i] for i in range(3))
            assert aggregate_spikes(q, k, "channel", 1.0)[t, 0, h, n, 0] == expected
        for i in range(3):
            tokens = sum(q[t, 0, h, n, i] for n in range(5))
            both = sum(q[t, 0, h, n, i] * k[t, 0, h, n, i] for n in range(5))
            assert aggregate_spikes(q, k, "token", 1.0)[t, 0, h, 0, i] == tokens
            assert aggregate_spikes(q, k, "product", 0.5)[t, 0, h, 0, i] == both / 2


@pytest.mark.parametrize("aggregate", ["channel", "token", "product"])
@pytest.mark.parametrize("carrier", ["k", "q"])
def test_a_mask_selects_spikes_of_the_carrier(aggregate: str, carrier: str):
    torch.manual_seed(0)
    site = Site(dim=16, heads=4, T=3, grid=(4, 5))
    sasa = awake(SASA(site, aggregate=aggregate, carrier=carrier, dwc="none")).double().eval()
    heard: list[torch.Tensor] = []
    sasa.out.register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    x = spikes(3, 2, 16, 4, 5)
    sasa(x)
    source = (sasa.k if carrier == "k" else sasa.q)(x)
    assert torch.equal(heard[0] * source, heard[0])  # nothing that the carrier does not have
    assert 0 < heard[0].mean() < source.mean()


def test_a_quarter_of_the_tokens_makes_a_mask_fire_in_the_end():
    # 16 tokens, scale 2/16: 4 spikes are a current of 0.5, which charges to 0.5 (1 - 2**-t); 5 are
    # 0.625: 0.3125, 0.46875, 0.546875 fires at the third step
    sasa = SASA(Site(dim=8, heads=1, grid=(4, 4)))
    assert sasa.scale == 1 / 8
    assert sasa.fire(torch.full((5, 1), 4 * sasa.scale)).sum() == 0
    assert sasa.fire(torch.full((3, 1), 5 * sasa.scale)).flatten().tolist() == [0.0, 0.0, 1.0]


def test_its_cost_is_linear_in_tokens_and_channels():
    small = create_attention("sasa", dim=16, heads=4, T=2, grid=(2, 3)).adds()
    assert create_attention("sasa", dim=16, heads=4, T=2, grid=(4, 3)).adds() == 2 * small
    assert create_attention("sasa", dim=32, heads=4, T=2, grid=(2, 3)).adds() == 2 * small


def test_it_has_no_value_projection():
    names = {
        n.split(".")[0] for n, _ in create_attention("sasa", dim=16, heads=4).named_parameters()
    }
    assert names == {"q", "k", "dwc", "out"}


STANDS = {
    "parallel": ["blocks.0.attention.dwc.conv"],
    "mlp": ["blocks.0.mlp.between.0.conv"],
    "stem": ["stem.after.0.conv"],
    "none": [],
}


@pytest.mark.parametrize("place", DWC)
@pytest.mark.parametrize("body", ["saformer_4_384", "spikformer_4_384", "spikformer_8_512"])
def test_the_dwc_stands_where_it_is_told(body: str, place: str):
    attention = {"name": "sasa", "dwc": place}
    model = create_model(body, dim=32, depth=1, heads=4, image_size=16, attention=attention)
    again = rebuild(describe(model))
    for built in (model, again):
        found = [n for n, m in built.named_modules() if getattr(m, "groups", 1) > 1]
        assert found == STANDS[place]
    assert again.config == model.config
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, model.config.num_classes)


@pytest.mark.parametrize("place", DWC)
def test_a_recipe_places_the_dwc_and_its_checkpoint_loads(place: str, tmp_path: Path):
    text = "model: {name: spikformer, attention: sasa, dim: 16, depth: 1}\ndata: {name: digits}"
    recipe = parse_recipe(text, [f"model.attention.dwc={place}"])
    model = awake(create_model(**recipe.model, in_channels=1, image_size=8)).eval()
    save_weights(tmp_path / "last.safetensors", model, {})
    loaded, x = load(tmp_path), torch.rand(2, 1, 8, 8)
    assert [n for n, m in loaded.named_modules() if getattr(m, "groups", 1) > 1] == STANDS[place]
    assert model(x).any()
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("place", DWC)
def test_alone_it_has_the_branch_that_is_its_own_or_none(place: str):
    depthwise = create_attention("sasa", dim=16, heads=4, dwc=place).dwc
    assert (depthwise is not None) == (place == "parallel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregate": "tokens"}, "got aggregate='tokens'; did you mean 'token'"),
        ({"carrier": "v"}, "Known: k, q"),
        ({"dwc": "paralel"}, "did you mean 'parallel'"),
        ({"dwc": None}, "got dwc=None; .*Known: parallel, mlp, stem, none"),
    ],
)
def test_bad_options_name_the_valid_choice(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_attention("sasa", dim=16, heads=4, **options)
