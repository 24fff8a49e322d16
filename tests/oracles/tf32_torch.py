"""What TF32 does to bilinear sums and to the gradients of their positions, on a GPU and simulated: PyTorch only.

A bin has 2 x 2 samples one cell apart, so it is a sum of 3 x 3 pixels. The sum and its gradients are computed by
batched matrix products, with and without TF32, and by elementwise products and sums, as `ppdet_lite/ops` computes them
on a GPU; all are compared with float64. The simulation rounds the factors of the products to TF32's 10 bits.

    python tests/oracles/tf32_torch.py [--device cpu --bins 2000]
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HEIGHT, WIDTH, CHANNELS = 100, 168, 256
Product = Callable[[Tensor, Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """Round float32 to the nearest number with 10 bits of mantissa; halves away from zero, as Ampere's cvt.rna does."""
    return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b)


def simulated_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(tf32(a), tf32(b))


def multiply_add(a: Tensor, b: Tensor) -> Tensor:
    """Multiply [B, 1, K] by [B, K, N], or [B, K, 1] by [B, 1, N]."""
    if a.shape[2] == 1:
        return a * b
    if b.stride(1) == 1 and b.shape[1] > 1:  # transposed rows: sum along the channels, which are contiguous
        return (a * b.transpose(1, 2)).sum(2).unsqueeze(1)
    return (a.transpose(1, 2) * b).sum(1, keepdim=True)


def inputs(bins: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return table rows, taps [B, 9], their fractions along y and x [B, 1], and the gradient of the sums [B, C]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, CHANNELS, HEIGHT // 4, WIDTH // 4, generator=generator)  # smooth, as features are
    rows = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")[0].permute(1, 2, 0).reshape(-1, CHANNELS)
    y = torch.randint(0, HEIGHT - 2, (bins, 1, 1), generator=generator) + torch.arange(3).reshape(3, 1)
    x = torch.randint(0, WIDTH - 2, (bins, 1, 1), generator=generator) + torch.arange(3)
    fy, fx = torch.rand(2, bins, 1, generator=generator)
    return rows.contiguous(), (y * WIDTH + x).flatten(1), fy, fx, torch.randn(bins, CHANNELS, generator=generator)


def compute(product: Product, rows: Tensor, index: Tensor, fy: Tensor, fx: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return the sums and the gradients of their weights, of their offsets along x, and of the rows."""
    one = torch.ones_like(fy)
    along_y, along_x = (torch.cat([1 - f, one, f], dim=1) / 2 for f in (fy, fx))
    weight = (along_y.unsqueeze(2) * along_x.unsqueeze(1)).flatten(1)
    gathered = rows[index]
    sums = product(weight.unsqueeze(1), gathered).squeeze(1)
    weight_grad = product(grad.unsqueeze(1), gathered.transpose(1, 2)).squeeze(1)
    slope = torch.cat([-one, 0 * one, one], dim=1) / 2  # of along_x
    offset_grad = (weight_grad.unflatten(1, (3, 3)) * along_y.unsqueeze(2) * slope.unsqueeze(1)).sum((1, 2))
    row_grad = product(weight.unsqueeze(2), grad.unsqueeze(1)).flatten(0, 1)
    rows_grad = torch.zeros_like(rows).index_add_(0, index.flatten(), row_grad)
    return {"sum": sums, "weights": weight_grad, "offsets": offset_grad, "rows": rows_grad}


def milliseconds(function: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(8):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[1:])[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bins", type=int, default=512 * 49)
    options = parser.parse_args()
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {options.bins} bins")
    single = [tensor.to(device) for tensor in inputs(options.bins)]
    double = [tensor.double() if tensor.is_floating_point() else tensor for tensor in single]
    exact = compute(matrix_product, *double)
    square = torch.rand(2048, 2048, generator=torch.Generator().manual_seed(1)).to(device) - 0.5
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        error = (square @ square - square.double() @ square.double()).abs().max()
        print(f"one large matrix product, precision {precision}: largest error {error.item():.1e}")
    print(f"{'root mean square error / root mean square value':<52}{'  '.join(f'{key:>8}' for key in exact)}      ms")
    for label, product, precision in (
        ("matrix products, TF32", matrix_product, "high"),
        ("matrix products, TF32 off", matrix_product, "highest"),
        ("matrix products, TF32 off, factors rounded to TF32", simulated_product, "highest"),
        ("elementwise products and sums, TF32", multiply_add, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        found = compute(product, *single)
        errors = [((found[key] - value).square().mean() / value.square().mean()).sqrt() for key, value in exact.items()]
        del found
        duration = milliseconds(lambda product=product: compute(product, *single), device)
        print(f"{label:<52}{'  '.join(f'{error.item():8.1e}' for error in errors)}  {duration:6.1f}")


if __name__ == "__main__":
    main()
