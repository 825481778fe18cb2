"""Whether outputs vary at all: the agreement of outputs that are almost constant says nothing about a computation."""

from collections.abc import Sequence

from torch import Tensor

# Below this share the outputs are almost constant. Networks of ``randomize`` are at 0.08 and more on photographs, those
# of segmentation in the official initialization at 1e-7 and less.
LEAST_VARIATION = 0.05


def variation(outputs: Tensor | Sequence[Tensor]) -> float | None:
    """The share of an output, 0 to 1, that is not constant over images and pixels; of several outputs the least.

    It is ``||y - mean(y)|| / ||y||`` with the mean of each channel: a coefficient of variation that is defined for
    channels of mean zero, too. An output of zeros has 0.

    Args:
        outputs: [N, C, H, W] or [N, C], or several of these.

    Returns:
        None where no output has two values of a channel (the logits [1, C] of one image).
    """
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = [_variation(y.detach().double()) for y in tensors if y.numel() > y.shape[1]]
    return min(found, default=None)


def _variation(y: Tensor) -> float:
    norm = float(y.norm())
    mean = y.mean(dim=[0, *range(2, y.dim())], keepdim=True)
    return float((y - mean).norm()) / norm if norm else 0.0
