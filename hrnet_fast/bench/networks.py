"""Cases of whole networks: those of ``create_model``, and timm's, patched."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrnet_fast import create_model
from hrnet_fast.bench import BadInput, images, timm_models
from hrnet_fast.bench.contenders import CHANNELS_LAST, EAGER, FAST, OPTIMIZED, Problem
from hrnet_fast.bench.harness import Output
from hrnet_fast.bench.measure import Case, counted
from hrnet_fast.models import multiply_adds, randomize
from hrnet_fast.nn import PlainExchangeUnit, PlainHRFPN, PlainSegmentationHead
from hrnet_fast.patching import patch

GROUPS = {"exchange units": (PlainExchangeUnit,), "head": (PlainSegmentationHead, PlainHRFPN)}
# Of each task the network that people run most, and its official size (height, width) at test time; None: the image's
# own size. Detection: 800 pixels, the longer side at most 1333, padded to multiples of 32.
DEFAULTS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "segmentation": ("hrnet_w48", None),
    "segmentation_ocr": ("hrnet_w48", None),
    "classification": ("hrnet_w18", (224, 224)),
    "pose": ("hrnet_w32", (256, 192)),
    "detection": ("hrnet_w32", (800, 1344)),
    "features": ("hrnet_w18", (224, 224)),  # timm's
}
USUAL = (EAGER, CHANNELS_LAST, FAST, OPTIMIZED)
CALIBRATION_IMAGES = 16


def create(model: str, task: str, checkpoint: str | None = None, image: Tensor | None = None,
           official: bool = False) -> nn.Module:  # fmt: skip
    """A network in its plain form, in evaluation.

    Without a checkpoint it has the weights and statistics of ``randomize``, so that outputs vary with the image;
    ``official``: those of the official initialization, the same each time.

    Raises:
        BadInput: the network does not take images of this size; the checkpoint cannot be read or is another network's.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            plain = create_model(model, task=task, fast=False, checkpoint=checkpoint).eval()
    except Exception as error:  # whatever a file of anything at all makes the readers of checkpoints raise
        if checkpoint is None:
            raise
        lines = str(error).splitlines()
        raise BadInput(f"checkpoint {checkpoint}: {lines[0] if lines else type(error).__name__}") from None
    try:
        if image is not None:
            plain.check_image(image)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return randomize(plain) if checkpoint is None and not official else plain


def same_weights(plain: nn.Module) -> nn.Module:
    """The fast form of a network of create_model."""
    network = create_model(**plain.recipe, fast=True).eval().requires_grad_(False)
    network.load_state_dict(plain.state_dict())
    return network.to(next(plain.parameters()).device)


def patched(model: nn.Module) -> nn.Module:
    """Somebody else's network, patched."""
    patch(model)
    return model


def network_problem(device: torch.device | str, *, model: str, task: str, size: tuple[int, int] | None,
                    dtype: torch.dtype, source: str | None = None, calibrated: bool = False, **options) -> Problem:  # fmt: skip
    """A network of create_model on a photograph.

    Args:
        device: to compute on.
        model: its name.
        task: of create_model.
        size: (height, width) of the image; None: its own.
        dtype: to compute in.
        source: of the photograph: images.load.
        calibrated: with other views of the photograph, for int8.
        options: ``checkpoint`` and ``official`` of ``create``, and fields of the problem.
    """
    image = images.load(source, size)
    plain = create(model, task, options.pop("checkpoint", None), image, options.pop("official", False))
    made = images.variants(CALIBRATION_IMAGES, tuple(image.shape[2:]), source) if calibrated else None
    return Problem(plain.to(device), (image.to(device),), dtype, same_weights, calibration=made,
                   count=lambda: _gflops(plain, image), **options)  # fmt: skip


def _gflops(plain: nn.Module, image: Tensor) -> tuple[float, float]:
    found = multiply_adds(create_model(**plain.recipe), tuple(image.shape[2:]))
    return found.published_gflops, found.executed_gflops


def timm_problem(device: torch.device | str, *, model: str, size: tuple[int, int] | None, dtype: torch.dtype,
                 source: str | None = None, calibrated: bool = False, **options) -> Problem:  # fmt: skip
    """One of timm's HRNets on a photograph; arguments as above.

    Raises:
        BadInput: timm is not there or has no such network, or the network cannot take images of this size.
    """
    image, plain = images.load(source, size), randomize(timm_models.create(model))
    try:
        count = counted(plain, (image,))
    except RuntimeError as error:  # streams whose sizes do not fit
        raise BadInput(f"size {image.shape[2]}x{image.shape[3]}: {model} needs multiples of 32 ({error})") from None
    made = images.variants(CALIBRATION_IMAGES, tuple(image.shape[2:]), source) if calibrated else None
    # patched or not, an exchange between equal sizes takes as many
    return Problem(
        plain.to(device), (image.to(device),), dtype, patched, calibration=made, count=lambda: (count, count), **options
    )


def network(name: str, description: str, contenders: Sequence[str] = USUAL, *, dtype: torch.dtype, **options) -> Case:
    """A case of ``network_problem`` with its options."""
    made = functools.partial(network_problem, dtype=dtype, **options)
    classes = _classes if options["task"].startswith("segmentation") else None
    return Case(name, description, dtype, made, contenders, memory=True, classes=classes, groups=GROUPS)


def drop_in(name: str, description: str, contenders: Sequence[str] = USUAL, *, dtype: torch.dtype, **options) -> Case:
    """What the drop-in gains: a case of ``timm_problem`` with its options."""
    return Case(
        name, description, dtype, functools.partial(timm_problem, dtype=dtype, **options), contenders, memory=True
    )


def _classes(outputs: Output) -> Tensor:
    """Of every pixel, [N, H, W]. Of OCR's outputs the second is its result."""
    return (outputs if isinstance(outputs, Tensor) else outputs[-1]).argmax(1)
