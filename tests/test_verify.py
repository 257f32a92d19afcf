"""Golden files pass, and `verify` notices what is wrong with a file or with us."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saccade._golden import GOLDEN
from saccade.models import spikformer
from saccade.verify import TOLERANCE, verify_file


def files_of(folder: Path) -> list[Path]:
    """Every golden file of a family that we declare."""
    name = re.compile(r"(.+)_(?:(?:[a-z]|\d+)(?:_(?:dvs|kd|train|cifar))?|released)")
    families = ((path, name.fullmatch(path.stem)) for path in sorted(folder.glob("*.npz")))
    return [path for path, match in families if match and match[1] in GOLDEN]


def test_every_golden_file_of_our_families_passes(golden: Path):
    files = files_of(golden)
    assert len(files) >= 93
    verdicts = [verify_file(path) for path in files]
    assert [v for v in verdicts if not v.ok] == []
    assert max(v.max_error or 0 for v in verdicts) < 1e-12


def test_every_declared_family_with_files_is_met(golden: Path):
    met = {v.family for v in map(verify_file, files_of(golden))}
    # the training-mode model was recorded for the CIFAR copy alone
    assert set(GOLDEN) - met == {"spikformer_model_train_dvs", "spikformer_model_train_imagenet"}


def official_keys(family: str) -> list[str]:
    """Parameter and buffer names of a small official module."""
    linear = "linear" if family.endswith("cifar") else "conv"
    names = []
    for fc in ("fc1", "fc2"):
        names += [f"{fc}_{linear}.weight", f"{fc}_{linear}.bias"]
        bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        names += [f"{fc}_bn.{part}" for part in bn]
    return names


def write_mlp(path: Path, **changes: Any) -> Path:
    """A golden file of our own making: an MLP's values, under the official names."""
    torch.manual_seed(0)
    config = {
        "variant": "dvs",
        "ctor": {"in_features": 5, "hidden_features": 7, "out_features": 3},
        "T": 2,
        "mode": "eval",
    }
    x = torch.randint(0, 3, (2, 3, 5, 4)).double()
    module = spikformer._build_mlp(config, {"input": x}).double().eval()
    for p in module.parameters():
        p.data.uniform_(0.2, 1.5)
    leaf = x.clone().requires_grad_()
    y = module(leaf.unsqueeze(-1)).flatten(3)
    proj = torch.randn_like(y)
    (y * proj).sum().backward()
    keys = {k: spikformer._MLP.rename(k) for k in official_keys("dvs")}
    state, grads = module.state_dict(), dict(module.named_parameters())
    arrays: dict[str, Any] = {f"state/{k}": state[ours] for k, ours in keys.items()}
    arrays |= {f"grad_param/{k}": grads[o].grad for k, o in keys.items() if o in grads}
    arrays |= {"input": x, "output": y.detach(), "proj": proj, "grad_input": leaf.grad}
    arrays |= {k: v for k, v in changes.items() if v is not None}
    removed = {k for k, v in changes.items() if v is None}
    kept = {k: np.asarray(v) for k, v in arrays.items() if k not in removed}
    np.savez(path, config=np.array(json.dumps(config)), **kept)
    return path


def test_a_file_of_other_sizes_passes(tmp_path: Path):
    verdict = verify_file(write_mlp(tmp_path / "spikformer_mlp_dvs_a.npz"))
    assert verdict.ok, verdict.reason
    assert (verdict.family, verdict.case) == ("spikformer_mlp_dvs", "a")


def write_lrf_dyn(path: Path, *, error: float = 0.0) -> Path:
    """Eq. 12 of LRF-Dyn at sizes of our own, by loops: no gradients are kept."""
    rng = np.random.default_rng(0)
    T, B, C, H, W = 3, 1, 5, 4, 9
    token = rng.integers(0, 2, (T, B, C, H * W)).astype(np.float64)
    A, Gamma = rng.uniform(0.3, 0.9, C), rng.uniform(0.5, 2, C)
    kernels = {f"state/lrf_d{d}": rng.normal(size=(C, 3, 3)) for d in (2, 6)}
    X = np.zeros_like(token)
    for n in range(H * W):
        before = X[..., n - 1] if n else 0.0
        X[..., n] = A[:, None].T * before + Gamma[:, None].T * token[..., n]
    output, grid = X.copy(), X.reshape(T, B, C, H, W)
    for name, kernel in kernels.items():
        d = int(name.rpartition("d")[2])
        wide = np.pad(grid, ((0, 0),) * 3 + ((d, d),) * 2)
        for i in range(3):
            for j in range(3):
                part = wide[..., i * d : i * d + H, j * d : j * d + W]
                output += (kernel[:, i, j][:, None, None] * part).reshape(output.shape)
    output.flat[7] += error
    config = {"T": T, "B": B, "C": C, "H": H, "W": W, "dilations": [2, 6]}
    arrays = {"input": token, "output": output, "output_X": X, "state/A": A, "state/Gamma": Gamma}
    np.savez(path, config=np.array(json.dumps(config)), **arrays, **kernels)
    return path


def test_a_family_without_gradients_passes_at_other_sizes(tmp_path: Path):
    path = tmp_path / "lrf_dyn_eq12_core_7.npz"
    verdict = verify_file(write_lrf_dyn(path))
    assert verdict.ok, verdict.reason
    assert not verify_file(write_lrf_dyn(path, error=1e-6)).ok


def write_lrf_ssa(path: Path, **changes: Any) -> Path:
    """Eq. 8 and 14 of LRF-SSA at sizes of our own, from the dense form and autograd."""
    g = torch.Generator().manual_seed(5)
    T, B, C, H, W, heads, scale = 2, 2, 6, 5, 3, 2, 0.5
    qkv = torch.rand(3, T, B, C, H * W, generator=g).round().double().requires_grad_()
    r = torch.randn(C, 3, 3, generator=g).double().requires_grad_()
    q, k, v = (a.reshape(T, B, heads, C // heads, H * W) for a in qkv)
    mixed = torch.einsum("tbhcn,tbhcm,tbhem->tbhen", q, k, v).reshape(qkv[0].shape) * scale
    frames = qkv[2].reshape(T * B, C, H, W)
    conv = torch.nn.functional.conv2d(frames, r[:, None], padding=4, dilation=4, groups=C)
    local = conv.reshape(qkv[0].shape)
    proj = torch.randn(qkv[0].shape, generator=g).double()
    output = mixed + local
    (output * proj).sum().backward()
    charged = torch.zeros_like(output[0])
    spikes = []
    for x in output.detach():  # tau 2, threshold 0.5, hard reset
        charged = charged + (x - charged) / 2
        spikes.append((charged >= 0.5).double())
        charged = charged * (1 - spikes[-1])
    grads = dict(zip(("grad_q", "grad_k", "grad_v"), qkv.grad, strict=True))
    arrays = {"input": qkv, "output": output, "output_eq14": mixed + scale * local, "proj": proj}
    arrays |= {"output_spike": torch.stack(spikes), "state/lrf_d4": r, "grad/lrf_d4": r.grad}
    config = {"T": T, "B": B, "C": C, "H": H, "W": W, "heads": heads, "scale": scale}
    config["dilations"] = [4]
    kept = {n: np.asarray(a.detach()) for n, a in (arrays | grads).items()} | changes
    np.savez(path, config=np.array(json.dumps(config)), **kept)
    return path


def test_a_family_with_three_inputs_passes_at_other_sizes(tmp_path: Path):
    path = tmp_path / "lrf_ssa_core_b.npz"
    verdict = verify_file(write_lrf_ssa(path))
    assert verdict.ok, verdict.reason
    wrong = verify_file(write_lrf_ssa(path, grad_k=np.load(path)["grad_q"]))
    assert (wrong.ok, wrong.worst) == (False, "grad_k")


def test_one_flipped_spike_fails(tmp_path: Path):
    path = write_mlp(tmp_path / "spikformer_mlp_dvs_a.npz")
    output = np.load(path)["output"]
    output.flat[0] = 1 - output.flat[0]
    verdict = verify_file(write_mlp(path, output=output))
    assert not verdict.ok
    assert verdict.worst == "output"


@pytest.mark.parametrize(("factor", "ok"), [(0.5, True), (2.0, False)])
def test_the_tolerance_is_the_one_stated(tmp_path: Path, factor: float, ok: bool):
    path = write_mlp(tmp_path / "spikformer_mlp_dvs_a.npz")
    grad = np.load(path)["grad_input"]
    grad.flat[0] += factor * TOLERANCE * max(1, abs(grad).max())
    assert verify_file(write_mlp(path, grad_input=grad)).ok is ok


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state/fc1_conv.weight": None}, "holds nothing for fc1.conv.weight"),
        ({"state/fc3_conv.weight": np.ones(3)}, "'fc3_conv.weight' is not in the key map"),
        (
            {"state/fc1_conv.weight": np.ones((7, 6))},
            r"got shape \(7, 6\), expected \(7, 5",
        ),
        ({"output": np.ones((1, 2))}, "output: our shape"),
        ({"grad_input": np.full((2, 3, 5, 4), np.nan)}, "grad_input: error nan"),
        ({"something": np.ones(2)}, "something: our module computes no such array"),
        ({"proj": None}, "no 'proj' in the file"),
        ({"grad_param/fc1_conv.weight": np.ones(4)}, "computes no such array"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], reason: str):
    verdict = verify_file(write_mlp(tmp_path / "spikformer_mlp_dvs_a.npz", **changes))
    assert not verdict.ok
    assert re.search(reason, verdict.reason), verdict.reason
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_unknown_broken_and_missing_files_are_verdicts(tmp_path: Path):
    unknown = write_mlp(tmp_path / "spikfomer_mlp_dvs_a.npz")
    assert "did you mean 'spikformer_mlp_dvs'" in verify_file(unknown).reason
    broken = tmp_path / "spikformer_mlp_dvs_b.npz"
    broken.write_bytes(unknown.read_bytes()[:500])
    assert "not a golden file" in verify_file(broken).reason
    np.savez(broken, config=np.array("[1]"), input=np.zeros(1))
    assert "its config is a list" in verify_file(broken).reason
    assert "no such file" in verify_file(tmp_path / "spikformer_mlp_dvs_c.npz").reason


@pytest.mark.parametrize(
    ("stem", "family", "case"),
    [
        ("tim_model_dvs_a", "tim_model_dvs", "a"),
        ("sdt1_model_b_dvs", "sdt1_model", "b_dvs"),
        ("tim_model_dvs_released", "tim_model_dvs", "released"),
        ("pmsn_neuron_2", "pmsn_neuron", "2"),
    ],
)
def test_family_and_case_come_from_the_name(tmp_path: Path, stem: str, family: str, case: str):
    verdict = verify_file(tmp_path / f"{stem}.npz")
    assert (verdict.family, verdict.case) == (family, case)
