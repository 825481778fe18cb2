"""What an optimized network is called with: compared with its example, and told apart by shape."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrnet_fast.network.trees import flatten, paths, structure


class Arguments(NamedTuple):
    """The arguments of one call."""

    leaves: list
    build: Callable[[list], tuple[tuple, dict]]
    key: tuple  # equal for calls that one recording serves

    @classmethod
    def of(cls, args: tuple, kwargs: dict) -> "Arguments":
        """Taken apart."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):  # most calls; the rest takes 0.1 ms
            return cls([args[0]], _alone, (_tensor_key(args[0]),))
        leaves, build = flatten((args, kwargs))
        # a float and an int, or True and 1, are equal and do not compute the same
        key = tuple(_tensor_key(x) if isinstance(x, Tensor) else (type(x), x) for x in leaves)
        return cls(leaves, build, key)

    def tensors(self) -> list[Tensor]:
        """In the order of the recorded graph's inputs."""
        return [x for x in self.leaves if isinstance(x, Tensor)]

    def like(self, make: Callable[[Tensor], Tensor]) -> tuple[tuple, dict]:
        """(args, kwargs) with other tensors."""
        return self.build([make(x) if isinstance(x, Tensor) else x for x in self.leaves])

    def shapes(self) -> tuple:
        """Of the tensors; of a single one its shape alone."""
        found = tuple(tuple(x.shape) for x in self.tensors())
        return found[0] if len(found) == 1 else found


class Expected:
    """What calls must have in common with the example.

    Args:
        args, kwargs: the example.
        device: where the model is.
    """

    def __init__(self, args: tuple, kwargs: dict, device: torch.device):
        self._structure = structure((args, kwargs))
        self._device = device
        self._alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self._names = ["image"] if self._alone else _names(args, kwargs)
        self._leaves = [_Kind.of(x) for x in flatten((args, kwargs))[0]]

    def check(self, args: tuple, kwargs: dict) -> Arguments:
        """Takes the arguments of a call apart.

        Raises:
            TypeError: something else than a tensor, or of another kind of dtype, where the example has a tensor.
            ValueError: another structure, rank, number of channels or device; an empty tensor.
        """
        if self._alone and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            self._leaves[0].check("image", args[0], self._device)
            return Arguments.of(args, kwargs)
        if structure((args, kwargs)) != self._structure:
            raise (TypeError if self._alone else ValueError)(
                f"{self._names[0]}: expected arguments of the example's structure ({', '.join(self._names)}), "
                f"got {', '.join(_names(args, kwargs)) or 'none'}"
            )
        found = Arguments.of(args, kwargs)
        for name, kind, x in zip(self._names, self._leaves, found.leaves, strict=True):
            kind.check(name, x, self._device)
        try:
            hash(found.key)
        except TypeError:
            raise TypeError(f"arguments: what is no tensor must be hashable, got {found.key}") from None
        return found


class _Kind(NamedTuple):
    """Of one leaf of the example; ``dtype`` None: it is no tensor."""

    dtype: torch.dtype | None
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, x: Any) -> "_Kind":
        return cls(x.dtype, tuple(x.shape)) if isinstance(x, Tensor) else cls(None)

    def check(self, name: str, x: Any, device: torch.device) -> None:
        if self.dtype is None:
            if isinstance(x, Tensor):
                raise TypeError(f"{name}: expected no tensor, as in the example, got one of {list(x.shape)}")
            return
        if not isinstance(x, Tensor):
            like = "[N, C, H, W]" if len(self.shape) == 4 else f"of rank {len(self.shape)}"
            raise TypeError(f"{name}: expected a tensor {like}, got {type(x).__name__}")
        if self.dtype.is_floating_point != x.is_floating_point() or (
            not x.is_floating_point() and x.dtype != self.dtype
        ):
            wanted = "a floating dtype" if self.dtype.is_floating_point else f"{self.dtype}"
            raise TypeError(f"{name}: expected {wanted}, as in the example, got {x.dtype}")
        if x.device != device:
            raise ValueError(f"{name}: expected a tensor on {device}, where the model is, got one on {x.device}")
        if x.dim() != len(self.shape):
            like = "[N, C, H, W]" if len(self.shape) == 4 else f"rank {len(self.shape)}"
            raise ValueError(f"{name}: expected {like}, got {list(x.shape)}")
        if x.dim() == 4 and x.shape[1] != self.shape[1]:
            raise ValueError(f"{name}: expected {self.shape[1]} channels, got {list(x.shape)}")
        if 0 in x.shape and 0 not in self.shape:
            raise ValueError(f"{name}: it is empty, {list(x.shape)}")


def _tensor_key(x: Tensor) -> tuple:
    return (tuple(x.shape), None if x.is_floating_point() else x.dtype)


def _alone(leaves: list) -> tuple[tuple, dict]:
    return tuple(leaves), {}


def _names(args: tuple, kwargs: dict) -> list[str]:
    positional = [path for k, x in enumerate(args) for path in paths(x, f"argument {k}")]
    return [*positional, *(path for key, x in kwargs.items() for path in paths(x, key))]
