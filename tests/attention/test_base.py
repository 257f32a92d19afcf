"""The place of an attention, and the errors of the front door."""

import pytest

from saccade.attention import Site, create_attention, list_attention


def test_the_list_takes_a_pattern():
    assert "ssa" in list_attention()
    assert list_attention("ss*") == ["ssa"]
    assert list_attention("no such*") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sssa"}, "unknown attention 'sssa'; did you mean 'ssa'"),
        ({"heads": 5}, "got dim=16 and heads=5.*nearest is heads=4"),
        ({"heads": 0}, "got heads=0"),
        ({"T": 0}, "got T=0"),
        ({"grid": (0, 3)}, "got grid"),
        ({"scael": 0.25}, "no option 'scael'; did you mean 'scale'"),
        ({"scale": 0.0}, "got scale=0.0"),
        ({"neuron": "lfi"}, "did you mean 'lif'"),
    ],
)
def test_bad_options_name_the_valid_choice(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_attention(**{"name": "ssa", "dim": 16, "heads": 4} | options)


def test_a_site_counts_its_tokens_and_makes_its_neurons():
    site = Site(dim=8, heads=2, grid=(3, 5), neuron={"name": "lif", "tau": 3.0})
    assert site.tokens == 15
    neuron = site.fires(v_threshold=0.5)
    assert (neuron.tau, neuron.fire.v_threshold) == (3.0, 0.5)
