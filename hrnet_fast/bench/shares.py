"""How much of a network's forward pass goes into its exchange units and its head."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from hrnet_fast.bench.harness import synchronized_clock


def shares(
    model: nn.Module,
    inputs: torch.Tensor,
    groups: dict[str, tuple[type[nn.Module], ...]],
    *,
    rounds: int = 3,
    clock: Callable[[], float] = synchronized_clock,
) -> dict[str, float]:
    """The share of the forward pass, 0 to 1, spent in the modules of each group; the median of some rounds.

    Args:
        model: in eval mode; its modules are called as modules, so that hooks see them.
        inputs: [N, C, H, W].
        groups: name -> module classes. Modules inside a module that is counted are not counted again.
        rounds: forward passes, after one to warm up.
        clock: seconds, after all work on the accelerator has ended.
    """
    spent, inside = defaultdict(float), []

    def before(module, arguments):
        inside.append((module, clock()))

    def after(module, arguments, output, group):
        _, start = inside.pop()
        if not inside:
            spent[group] += clock() - start

    hooks = []
    for module in model.modules():
        group = next((name for name, classes in groups.items() if isinstance(module, classes)), None)
        if group is not None:
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(lambda m, a, o, group=group: after(m, a, o, group)))
    found = {name: [] for name in groups}
    try:
        with torch.inference_mode():
            model(inputs)
            for _ in range(rounds):
                spent.clear()
                start = clock()
                model(inputs)
                total = clock() - start
                for name in groups:
                    found[name].append(spent[name] / total)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}
