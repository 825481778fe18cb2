"""Names for the convolutions of a recorded network, which recordings of all shapes have in common."""

from torch import Tensor, nn

from hrnet_fast.network.nodes import Constant
from hrnet_fast.network.sums import Step, Sum, Weight


def names(model: nn.Module, steps: list[Step]) -> dict[Weight, str]:
    """A name for the weight of every convolution: that of its parameter, the same in recordings of all shapes.

    Input channels that a sum takes alone are a part of it: "head.weight[48:144]". A weight that is computed from
    parameters is "computed 0", "computed 1" and so on, in the order of the steps. What another weight has been called,
    of the same parameter with another norm, gets " 2".

    Args:
        model: that was recorded.
        steps: of the recording.
    """
    known: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for prefix, module in model.named_modules():  # tensors that are plain attributes are recorded, too
        tensors += [(f"{prefix}.{k}" if prefix else k, v) for k, v in vars(module).items() if isinstance(v, Tensor)]
    for name, tensor in tensors:
        known.setdefault(id(tensor), name)
    computed: dict[Constant, str] = {}
    made: dict[Weight, str] = {}
    taken: set[str] = set()
    for weight in (w for s in steps if isinstance(s, Sum) for w in s.weights()):
        if weight in made:
            continue
        constant = weight.weight
        name = known.get(id(constant.tensor)) if constant.tensor is not None else None
        if name is None:
            name = computed.setdefault(constant, f"computed {len(computed)}")
        if weight.inputs is not None:
            name += f"[{weight.inputs[0]}:{weight.inputs[1]}]"
        again, free = 1, name
        while free in taken:
            again += 1
            free = f"{name} {again}"
        made[weight] = free
        taken.add(free)
    return made
