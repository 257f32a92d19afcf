"""Named models with LRF-SSA and LRF-Dyn; the contract of every model is in test_contract.py."""

import pytest
import torch

from saccade.models import MODELS, create_model, list_models


def size(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **options).parameters())


def test_each_attention_is_named_at_two_sizes():
    assert list_models("*_lrf_*") == [
        "spikformer_4_384_lrf_dyn",
        "spikformer_4_384_lrf_ssa",
        "spikformer_8_512_lrf_dyn",
        "spikformer_8_512_lrf_ssa",
    ]


def test_kernels_are_all_that_lrf_ssa_adds_to_spikformer():
    # 8 blocks, two 3 x 3 kernels for each of 512 channels, or of the 64 of a head
    ssa = size("spikformer_8_512")
    assert size("spikformer_8_512_lrf_ssa") == ssa + 8 * 2 * 9 * 512
    shared = size("spikformer_8_512_lrf_ssa", attention={"name": "lrf_ssa", "shared_heads": True})
    assert shared == ssa + 8 * 2 * 9 * 64


def test_lrf_dyn_has_neither_q_nor_k():
    dyn, ssa = size("spikformer_8_512_lrf_dyn"), size("spikformer_8_512_lrf_ssa")
    projections = 2 * (512 * 512 + 2 * 512)
    dendrites = 8 * 512 + 8 + 7 + 7 + 8  # C, tau, couplings, Gamma
    assert ssa - dyn == 8 * (projections - dendrites)


@pytest.mark.parametrize(("name", "top1"), [("lrf_ssa", 74.62), ("lrf_dyn", 74.51)])
def test_results_are_those_reported(name: str, top1: float):
    (result,) = MODELS[f"spikformer_8_512_{name}"].results
    assert (result.dataset, result.value) == ("ImageNet, 224 px", top1)
