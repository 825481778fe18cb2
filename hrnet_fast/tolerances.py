"""How far a result may be from its float64 reference. One table, for ``hrnet-fast verify``, the benchmarks and tests.

Every figure bounds the relative error ``||out - ref|| / ||ref||`` (Frobenius norms over the whole tensor).
"""

import torch
from torch import Tensor

# One exchange, one exchange unit, one head: products are added up in float32 and rounded once at the store.
OPERATOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}

# float32 products that torch.backends.cuda.matmul.allow_tf32 lets a GPU round to TF32.
OPERATOR_TF32 = 1e-3

# A whole network: hundreds of layers, each of which rounds its result. int8: its convolutions multiply 8-bit integers,
# so that every weight and activation is rounded to one of 256 steps.
MODEL = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.int8: 1.5e-1}


def relative_error(output: Tensor, reference: Tensor) -> float:
    """``||output - reference|| / ||reference||`` in float64; infinite where the shapes differ or a NaN is in the way.

    A reference of zeros (or without elements) asks for the very same output.
    """
    if output.shape != reference.shape:
        return float("inf")
    output, reference = output.detach().double(), reference.detach().double().to(output.device)
    difference, norm = float((output - reference).norm()), float(reference.norm())
    if difference == 0.0:
        return 0.0
    error = difference / norm if norm else float("inf")
    return error if error == error else float("inf")
