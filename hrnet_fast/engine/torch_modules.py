"""The engine for GPUs and for what cannot be planned: a patched copy of the network in torch's operators."""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hrnet_fast.engine.cuda_graphs import GraphedModule
from hrnet_fast.engine.cuda_streams import Branches
from hrnet_fast.engine.lowering import Normalization
from hrnet_fast.models import create_model
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.modules import ExchangeUnit
from hrnet_fast.patching import patch


class TorchModules:
    """A copy of the network with folded BatchNorm, fused exchanges and heads.

    Args:
        model: the network, in evaluation; it is left as it is.
        dtype: that the copy computes in.
        channels_last: its memory format; else contiguous.
        max_shapes: CUDA graphs that are kept; 0: none is recorded.
        branches: runs the branches of a stage side by side; None: one after the other.
        normalization: what the network expects of its images and callers have not done.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        channels_last: bool,
        max_shapes: int = 0,
        branches: Branches | None = None,
        normalization: Normalization | None = None,
    ):
        self._normalization = normalization
        self._model, self._dtype, self._max_shapes, self._branches = model, dtype, max_shapes, branches
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.rebuild()

    def rebuild(self) -> None:
        """Makes the copy anew, and forgets the graphs of the old one."""
        twin = _fast_twin(self._model)
        if twin is None:
            twin = copy.deepcopy(self._model)
            patch(twin)
        self.module = twin.eval().requires_grad_(False).to(dtype=self._dtype, memory_format=self._layout)
        if self._branches is not None:
            for module in list(self.module.modules()):
                if isinstance(getattr(module, "branches", None), nn.ModuleList) and len(module.branches) > 1:
                    _side_by_side(module, self._branches)
        # the copy belongs to this engine alone: nothing changes the parameters that a graph reads
        self._call = GraphedModule(self.module, max_graphs=self._max_shapes) if self._max_shapes else self.module

    refill = rebuild

    def exchanges(self) -> int:
        """How many modules of the copy exchange between resolutions by the fused operator."""
        patched = sum(getattr(m, "_hrnet_fast_adapter", None) is not None and hasattr(m, "fuse_layers")
                      for m in self.module.modules())  # fmt: skip
        return patched + sum(isinstance(m, ExchangeUnit) for m in self.module.modules())

    def __call__(self, image: Tensor) -> Any:
        """What the network returns, for an image [N, C, H, W] of any floating dtype and layout."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            given = image.detach()
            given = given if self._normalization is None else self._normalization(given)
            given = given.to(self._dtype).contiguous(memory_format=self._layout)
            out = self._call(given)
            # the caller may write into results: they must not be the image that came in
            return pytree.tree_map_only(Tensor, lambda t: t.clone() if t is given or t is image else t, out)


def _side_by_side(module: nn.Module, branches: Branches) -> None:
    """Lets a module of a stage run its branches together; in their places it finds what they have made."""
    real, forward = list(module.branches), module.forward
    module.side_by_side = nn.ModuleList(real)
    module.branches = nn.ModuleList(nn.Identity() for _ in real)

    def together(streams: list[Tensor]) -> Any:
        made = branches.run([functools.partial(branch, x) for branch, x in zip(real, streams)])
        return forward([*made, *streams[len(real) :]])

    module.forward = together


def _fast_twin(model: nn.Module) -> nn.Module | None:
    """Our own networks in their fast form; None for others, and for those that somebody has changed."""
    recipe = getattr(model, "recipe", None)
    if recipe is None or not isinstance(model, HRNet) or not type(model).__module__.startswith("hrnet_fast."):
        return None
    device = next(model.parameters()).device
    options = {"full_resolution": model.full_resolution} if hasattr(model, "full_resolution") else {}
    with torch.device("meta"):
        twin = create_model(**recipe, **options, fast=True)
    try:
        twin.load_state_dict(model.state_dict(), assign=True)
    except RuntimeError:  # other keys or shapes than the recipe's
        return None
    return copy.deepcopy(twin).to(device)  # assigned tensors are the model's own
