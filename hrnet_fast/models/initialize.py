"""Initial weights: those of the official code, and random ones under which every layer matters."""

import torch
from torch import nn

from hrnet_fast.nn.residual_blocks import BasicBlock, Bottleneck


def initialize_segmentation(model: nn.Module) -> None:
    """Convolutions normal with deviation 0.001 (``init_weights`` of HRNet-Semantic-Segmentation)."""
    for module in _convolutions(model):
        nn.init.normal_(module.weight, std=0.001)


def initialize_segmentation_ocr(model: nn.Module) -> None:
    """As segmentation, the heads left as PyTorch initializes them (``init_weights`` of the HRNet-OCR branch)."""
    for name, child in model.named_children():
        if not any(part in name for part in ("cls", "aux", "ocr")):
            initialize_segmentation(child)


def initialize_pose(model: nn.Module) -> None:
    """As segmentation, and biases zero (``init_weights`` of deep-high-resolution-net.pytorch)."""
    initialize_segmentation(model)
    for module in _convolutions(model):
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_classification(model: nn.Module) -> None:
    """Convolutions Kaiming normal by fan-out (``init_weights`` of HRNet-Image-Classification)."""
    for module in _convolutions(model):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def initialize_detection(model: nn.Module) -> None:
    """As classification; the pyramid Kaiming normal by fan-in without a gain, biases zero (HRNet-Object-Detection)."""
    initialize_classification(model)
    for module in _convolutions(model.neck):
        nn.init.kaiming_normal_(module.weight, a=1)
        nn.init.zeros_(module.bias)


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def randomize(model: nn.Module, seed: int = 0, example: object = None) -> nn.Module:
    """Random weights and BatchNorm statistics with which activations are of order 1 everywhere; returns ``model``.

    For verification and benchmarks: after the official initialization the outputs are almost constant (segmentation, OCR)
    or almost zero (pose), so that errors would not show. Convolutions and linear layers are Kaiming normal, BatchNorm's
    affine parameters random, and its running statistics those of an example. The same seed gives the same parameters
    whatever the state of PyTorch's own generators.

    Args:
        model: any module.
        seed: of the random numbers.
        example: the input of its forward that the statistics are taken from; by default a small random image.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor | None, mean: float, deviation: float) -> None:
        if tensor is not None:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    last_of_branch = {block.bn3 if isinstance(block, Bottleneck) else block.bn2 for block in blocks}
    momenta, training = [norm.momentum for norm in norms], {m: m.training for m in model.modules()}
    with torch.no_grad():
        for layer in layers:
            fan_in = layer.weight[0].numel()
            fill(layer.weight, 0.0, (2.0 / fan_in) ** 0.5)
            fill(layer.bias, 0.0, 0.1)
        for norm in norms:
            # As training leaves them: residual branches small beside what they are added to, and more positive values
            # than not. With branches as large as the sum, rounding errors grow from block to block, and in bfloat16
            # plain PyTorch itself is then further from float64 than any tolerance worth having.
            fill(norm.weight, *((0.2, 0.05) if norm in last_of_branch else (1.0, 0.2)))
            fill(norm.bias, 0.5, 0.2)
            norm.reset_running_stats()  # whatever is there now would be multiplied by 0, and a NaN stays one
            norm.momentum = 1.0  # the statistics of one image, at once
        if example is None:
            weight = layers[0].weight
            example = torch.randn(2, weight.shape[1], 64, 64, generator=generator).to(weight.device, weight.dtype)
        model.eval()  # dropout would draw from PyTorch's own generator
        for norm in norms:
            norm.train()
        model(example)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in training.items():
        module.training = mode
    return model
