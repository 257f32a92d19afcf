"""Norms of linear maps y = x W^T from the mean and the covariance of x: see `kernels.gram`."""

from typing import Any

import torch
from torch import Tensor

from saccade.kernels import gram as kernels
from saccade.ops._triton import launch, multiprocessors, power_of_two, tiles
from saccade.ops.norm_lif.passes import TALL
from saccade.ops.norm_lif.reference import Norm

BLOCK = 128
"""Side of the blocks of x^T x."""
SHARES = 32
"""Of the rows, at most: a kernel adds up what each leaves, unrolled."""
PRECISION = "tf32x3"
"""Of products of float32: three of its own kind make it as exact as float32 is."""


def dtype_of(x: Tensor) -> torch.dtype:
    """Of products of x: that of autocast, where it is on."""
    cast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if cast else x.dtype


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [K] of rows [M K] and covariance [parts, K, K], whose sum it is."""
    (M, K), side = x.shape, tiles(x.shape[1], BLOCK)
    blocks = side * (side + 1) // 2
    P = max(1, min(2 * multiprocessors(x.device) // blocks, SHARES, tiles(M, BLOCK)))
    products = torch.empty(P, blocks, BLOCK, BLOCK, device=x.device)
    sums = torch.empty(P, K, device=x.device)
    BM, warps = (64, 4) if x.dtype == torch.bfloat16 else (32, 8)
    launch(
        kernels.gram, (blocks, P), x, products, sums, M, K=K, SIDE=side, BM=BM, BK=BLOCK,
        PRECISION=PRECISION, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return centred(products, sums, M, x.dtype)


def centred(products: Tensor, sums: Tensor, M: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `moments`, of x^T x in blocks [P, blocks, BK, BK] and sums of x [P, K] over M rows."""
    (P, K), (_, blocks, BK, _) = sums.shape, products.shape
    parts = 3 if dtype == torch.bfloat16 else 1
    mean = torch.empty(K, device=sums.device)
    cov = torch.empty(parts, K, K, dtype=dtype, device=sums.device)
    launch(
        kernels.covariance, (blocks, BK // 16), products, sums, mean, cov, M, P=P, K=K,
        SIDE=tiles(K, BK), PARTS=parts, BR=16, BK=BK,
    )  # fmt: skip
    return mean, cov


def spread_of(weight: Tensor, cov: Tensor) -> Tensor:
    """W S [N K]."""
    (N, K), out = weight.shape, torch.empty(weight.shape, device=weight.device)
    launch(
        kernels.spread, (tiles(N, 64), tiles(K, 64)), weight, cov, out, N, K=K, PARTS=len(cov),
        BN=64, BK=64, PRECISION=PRECISION,
    )  # fmt: skip
    return out


def _row_tile(K: int) -> dict[str, int]:
    """Whole rows of K numbers, few a program."""
    width = power_of_two(K)
    return {"K": K, "BK": width, "BC": max(1, min(16, 2048 // width))}


def measured(weight: Tensor, spread: Tensor, mean: Tensor, norm: Norm, seen: int) -> Tensor:
    """Coefficients [4, D]: mean, 1/sd, and the norm as a y + b; moves the running statistics.

    Args:
        weight: [D K].
        spread: W S, see `spread_of`.
        mean: [K], of x.
        norm: of D channels.
        seen: rows of y that the norm saw, equal ones among them.
    """
    D, K = weight.shape
    coef, tile = torch.empty(4, D, device=weight.device), _row_tile(K)
    launch(
        kernels.measure, (tiles(D, tile["BC"]),), weight, spread, mean, norm.weight, norm.bias,
        norm.offset, norm.running_mean, norm.running_var, coef, seen / max(1, seen - 1),
        norm.momentum, norm.eps, OFFSET=norm.offset is not None, C=D, **tile,
    )  # fmt: skip
    return coef


def turn(
    weight: Tensor, spread: Tensor, mean: Tensor, coef: Tensor, product: Tensor, partial: Tensor,
    grad: Tensor, M: int, gain: Any, passed: Tensor | None = None, turned: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `kernels.turn`; the sums [4, D]."""
    D, K = weight.shape
    sums, tile = torch.empty(4, D, device=weight.device), _row_tile(K)
    launch(
        kernels.turn, (tiles(D, tile["BC"]),), weight, spread, mean, coef, product, partial, sums,
        grad, passed, turned, len(partial), M, gain, C=D,
        WIDE=0 if turned is None else turned.shape[1], BP=TALL[0], **tile,
    )  # fmt: skip
    return sums
