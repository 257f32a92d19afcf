"""A linear layer's batch norm from the Gram matrix of what goes in: K x K numbers, not M rows.

x [M K] goes in, y = x W^T comes out, W [N K]. With m and S, mean and covariance of x, the mean of y
is W m and its variance diag(W S W^T); and gradients that pass the norm are a sum of three products.
"""

import triton
import triton.language as tl

from saccade.kernels.norm_lif import added, settle


@triton.jit
def _pair(n, SIDE: tl.constexpr):
    """Row and column of the n-th block on or below the diagonal."""
    i, j = 0, n
    for row in tl.static_range(1, SIDE):
        if n >= row * (row + 1) // 2:
            i, j = row, n - row * (row + 1) // 2
    return i, j


@triton.jit
def gram(
    x, products, sums, M, K: tl.constexpr, SIDE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's share of rows in x^T x, a block on or below the diagonal, and in sums of x.

    products [P, blocks, BK, BK]; sums [P, K].
    """
    i, j = _pair(tl.program_id(0), SIDE)
    k = tl.arange(0, BK)
    left, right = i * BK + k, j * BK + k
    block = tl.zeros([BK, BK], tl.float32)
    count = tl.zeros([BK, 16], tl.float32)
    ones = tl.full([BM, 16], 1.0, x.dtype.element_ty)
    for start in range(tl.program_id(1) * BM, M, tl.num_programs(1) * BM):
        m = start + tl.arange(0, BM)
        row = m.to(tl.int64)[:, None] * K
        inside = (m < M)[:, None]
        a = tl.trans(tl.load(x + row + left[None, :], inside & (left < K)[None, :], 0.0))
        b = tl.load(x + row + right[None, :], inside & (right < K)[None, :], 0.0)
        block = tl.dot(a, b, block, input_precision=PRECISION)
        count = tl.dot(a, ones, count, input_precision=PRECISION)
    to = products + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * BK * BK
    tl.store(to + k[:, None] * BK + k[None, :], block)
    if i == j:
        tl.store(sums + tl.program_id(1) * K + left, tl.sum(count, 1) / 16, left < K)


@triton.jit
def covariance(
    products, sums, mean, out, M, P: tl.constexpr, K: tl.constexpr, SIDE: tl.constexpr,
    PARTS: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Mean [K] and covariance [PARTS, K, K] of what `gram` left; added up in float64.

    The covariance is the sum of its parts: three of bfloat16 are as exact as one of float32.
    """
    i, j = _pair(tl.program_id(0), SIDE)
    r, k = tl.program_id(1) * BR + tl.arange(0, BR), tl.arange(0, BK)
    down, across = i * BK + r, j * BK + k
    block = tl.zeros([BR, BK], tl.float64)
    of_row, of_column = tl.zeros([BR], tl.float64), tl.zeros([BK], tl.float64)
    at = products + tl.program_id(0) * BK * BK + r[:, None] * BK + k[None, :]
    for p in tl.static_range(P):
        block += tl.load(at + p * tl.num_programs(0) * BK * BK).to(tl.float64)
        of_row += tl.load(sums + p * K + down, down < K, 0.0).to(tl.float64)
        of_column += tl.load(sums + p * K + across, across < K, 0.0).to(tl.float64)
    of_row, of_column = of_row / M, of_column / M
    centred = (block / M - of_row[:, None] * of_column[None, :]).to(tl.float32)
    inside = (down < K)[:, None] & (across < K)[None, :]
    for part in tl.static_range(PARTS):
        rounded = centred.to(out.dtype.element_ty)
        to = out + part * K * K
        tl.store(to + down[:, None] * K + across[None, :], rounded, inside)
        tl.store(to + across[None, :] * K + down[:, None], rounded, inside)
        centred -= rounded.to(tl.float32)
    if i == j:
        tl.store(mean + down, of_row.to(tl.float32), down < K)


@triton.jit
def spread(
    weight, cov, out, N, K: tl.constexpr, PARTS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """W S [N K] of the S that `covariance` left: the covariance of y and x."""
    n, k = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BK + tl.arange(0, BK)
    block = tl.zeros([BN, BK], tl.float32)
    for start in range(0, K, BK):
        over = start + tl.arange(0, BK)
        at = n[:, None] * K + over[None, :]
        w = tl.load(weight + at, (n < N)[:, None] & (over < K)[None, :], 0.0)
        at = over[:, None] * K + k[None, :]
        for part in tl.static_range(PARTS):
            s = tl.load(cov + part * K * K + at, (over < K)[:, None] & (k < K)[None, :], 0.0)
            block = tl.dot(w, s, block, input_precision=PRECISION)
    tl.store(out + n[:, None] * K + k[None, :], block, (n < N)[:, None] & (k < K)[None, :])


@triton.jit
def measure(
    weight, spread, mean_x, gamma, beta, offset, running_mean, running_var, coef, correction,
    momentum, eps, OFFSET: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BC: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each of C outputs, and the norm as an affine map of them; K <= BK."""
    c, k = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, BK)
    inside = (c < C)[:, None] & (k < K)[None, :]
    at = c[:, None] * K + k[None, :]
    w = tl.load(weight + at, inside, 0.0).to(tl.float32)
    mean = tl.sum(w * tl.load(mean_x + k, k < K, 0.0)[None, :], 1)
    var = tl.maximum(tl.sum(w * tl.load(spread + at, inside, 0.0), 1), 0.0)
    settle(
        mean, var, correction, gamma, beta, offset, running_mean, running_var, coef, momentum, eps,
        c, c < C, OFFSET, C,
    )  # fmt: skip


@triton.jit
def turn(
    weight, spread, mean_x, coef, product, partial, sums, grad, passed, turned, P, M, gain,
    C: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """From g^T x of the gradient g behind the norm to the gradient of W, and two matrices; K <= BK.

    The first sums of partial [P, 2, C] are of g; sums [4, C] are left as `total` leaves them. The
    gradient of x is g `passed` + x W^T `turned` [C, WIDE], of which the column K stands for a row
    that is the same for all places, and what is behind it for nothing; None where it takes none.
    """
    c, k = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, BK)
    channel = c < C
    inside = channel[:, None] & (k < K)[None, :]
    at = c[:, None] * K + k[None, :]
    mean, rstd = tl.load(coef + c, channel, 0.0), tl.load(coef + C + c, channel, 0.0)
    a = tl.load(coef + 2 * C + c, channel, 0.0)
    first = added(partial, c, channel, P, C, BP, BC)[0].to(tl.float32)
    w = tl.load(weight + at, inside, 0.0).to(tl.float32)
    p = gain * tl.load(product + at, inside, 0.0)
    p -= first[:, None] * tl.load(mean_x + k, k < K, 0.0)[None, :]
    second = tl.sum(p * w, 1)
    tl.store(sums + c, first, channel)
    tl.store(sums + C + c, second, channel)
    tl.store(sums + 2 * C + c, second * rstd, channel)
    tl.store(sums + 3 * C + c, tl.zeros([BC], tl.float32), channel)
    slant = -a * rstd * rstd * second / M
    level = -a * first / M - slant * mean
    g = a[:, None] * p + (M * slant)[:, None] * tl.load(spread + at, inside, 0.0)
    tl.store(grad + at, g.to(grad.dtype.element_ty), inside)
    if passed is not None:
        tl.store(passed + at, ((gain * a)[:, None] * w).to(passed.dtype.element_ty), inside)
    if turned is not None:
        to = turned + c * WIDE
        tl.store(to[:, None] + k[None, :], (slant[:, None] * w).to(turned.dtype.element_ty), inside)
        tl.store(to + K, level.to(turned.dtype.element_ty), channel)
