"""Runs over the registry: a new mechanism is tested here without a line being added."""

from collections.abc import Iterator

import pytest
import torch

from saccade.attention import ATTENTION, SpikingAttention, check_attention
from saccade.attention._contract import PROMISES, Subject
from saccade.nn import Projection


@pytest.mark.parametrize("text", PROMISES)
@pytest.mark.parametrize("name", ATTENTION.list())
def test_every_attention_keeps_what_all_promise(name: str, text: str):
    assert PROMISES[text](Subject(name, {})) == ""


class Worst(SpikingAttention):
    """Breaks what its option names."""

    source, golden, equations = ATTENTION["ssa"].source, "official", ATTENTION["ssa"].equations

    def __init__(self, site, *, breaks: str = "") -> None:
        super().__init__()
        self.site, self.breaks, self.calls = site, breaks, 0
        self.out = Projection(site.dim, site.dim, neuron=site.neuron)
        self.idle = torch.nn.Parameter(torch.ones(1)) if breaks == "learns" else None
        self.adds_onto = breaks == "adds"

    def forward(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        if self.breaks == "fires":
            self.out.norm.bias.data.fill_(-100.0)
        y = self.out(x * 0 if self.breaks == "hears" else x)
        return {
            "shape": lambda: y[..., :1],
            "carries": lambda: y + self.calls,
            "samples": lambda: y + y.mean(1, keepdim=True),
            "causal": lambda: y + y.sum(0, keepdim=True),
            "streams": lambda: y.cumsum(0),
        }.get(self.breaks, lambda: y)()

    def adds(self) -> int:
        return -1 if self.breaks == "additions" else 1


@pytest.fixture
def worst() -> Iterator[None]:
    ATTENTION.add("worst")(Worst)
    yield
    del ATTENTION._entries["worst"]


def test_one_that_keeps_them_all_is_said_to(worst: None):
    assert not any(check_attention("worst").values())
    assert not any(check_attention("ssa", scale=0.25).values())


@pytest.mark.parametrize(
    ("breaks", "text", "said"),
    [
        ("fires", "neurons fire", "firing rates"),
        ("shape", "keeps shape", r"got \[3, 2, 16, 4, 1\]"),
        ("carries", "carries nothing", "the same input"),
        ("adds", "adds its spikes", "not stream"),
        ("samples", "does not mix samples", "a sample alone"),
        ("causal", "is causal", "changed earlier ones"),
        ("streams", "runs step by step", "single steps gave another output; expected scan"),
        ("hears", "hears", "the opposite input"),
        ("learns", "every parameter", "no gradient reaches idle"),
        ("additions", "says how many", r"got adds\(\)=-1"),
    ],
)
def test_what_is_broken_is_said(worst: None, breaks: str, text: str, said: str):
    found = check_attention("worst", breaks=breaks)
    (key,) = [promise for promise in found if promise.startswith(text)]
    with pytest.raises(ValueError, match=said):
        raise ValueError(found[key])


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="unknown attention 'sssa'; did you mean 'ssa'"):
        check_attention("sssa")
    with pytest.raises(ValueError, match="'ssa' has no option 'scal'; did you mean 'scale'"):
        check_attention("ssa", scal=1)
