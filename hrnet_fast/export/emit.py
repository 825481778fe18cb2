"""Steps as a module that computes them in PyTorch's own operators, for images of any size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.network.integers import Factor, Integers
from hrnet_fast.network.nodes import Constant, Graph, Node, Refused, Value
from hrnet_fast.network.sizes import Known, Numbers, Product, Sizes
from hrnet_fast.network.sums import Step, Sum, Up, Weight

Tensors = dict[Value | Constant, Tensor]  # what has been computed so far


class Emitted(nn.Module):
    """The same function as a recorded network; its weights are buffers.

    Args:
        graph: the network.
        steps: made of it.
        sizes: the graph beside recordings of other sizes.
        factors: what some weights multiply; these convolutions have weights and images rounded as for 8-bit integers.

    Raises:
        Refused: a size, or a weight, depends on the image in a way that cannot be written down.
    """

    def __init__(
        self, graph: Graph, steps: Sequence[Step], sizes: Sizes, factors: Mapping[Weight, Factor] | None = None
    ):
        super().__init__()
        self.graph, self.sizes, self._known = graph, sizes, Known(sizes)
        self._factors = factors or {}
        self._names: dict[tuple, str] = {}  # of the buffers
        self._program: list[Callable[[Tensors], None]] = []
        self._emitted: set[Constant] = set()
        for value in graph.inputs:
            self._known.see(value)
        for step in steps:
            if isinstance(step, Sum):
                self._sum(step)
            else:
                self._call(step.node)
        for x in graph.results:
            if isinstance(x, Constant):
                self._place(x)

    def forward(self, image: Tensor) -> Any:
        """Image [N, C, H, W] -> what the network returns."""
        return self.compute([image])

    def compute(self, inputs: Sequence[Tensor]) -> Any:
        """The same of a network that takes several tensors, in the order of the graph's inputs."""
        tensors: Tensors = dict(zip(self.graph.inputs, inputs, strict=True))
        for run in self._program:
            run(tensors)
        results = [self._get(tensors, x) if isinstance(x, (Value, Constant)) else x for x in self.graph.results]
        return self.graph.build(results)

    @property
    def kernels(self) -> dict[Weight, str]:
        """The buffer of each convolution's weight."""
        return {key[0]: name for key, name in self._names.items() if key[1:] == ("kernel",)}

    def _get(self, tensors: Tensors, x: Value | Constant) -> Tensor:
        return tensors[x] if x in tensors else getattr(self, self._names[(x,)])

    def _buffer(self, key: tuple, make: Callable[[], Tensor]) -> str:
        if key not in self._names:
            self._names[key] = name = f"constant{len(self._names)}"
            # its own memory, so that what is exported does not change with the network
            self.register_buffer(name, make().detach().clone(memory_format=torch.contiguous_format))
        return self._names[key]

    def _place(self, constant: Constant) -> None:
        """Makes a constant available: as a buffer, or computed where it depends on the size of the image."""
        if constant not in self.sizes.varying:
            self._buffer((constant,), constant.value)
        elif constant not in self._emitted:
            self._call(constant.node)

    def _number(self, numbers: Numbers) -> Callable[[Tensors], int]:
        made = self._known.made_of(numbers)
        if not isinstance(made, Product):
            return lambda tensors: made

        def compute(tensors: Tensors) -> int:
            number = made.factor
            for value, d in made.dims:
                number = number * self._get(tensors, value).shape[d]
            return number

        return compute

    def _call(self, node: Node) -> None:
        numbers = {}
        for k, x in enumerate(node.leaves):
            if isinstance(x, Constant):
                self._place(x)
            elif (differing := self.sizes.argument(node, k)) is not None:
                numbers[k] = self._number(differing)

        def run(tensors: Tensors) -> None:
            leaves = [self._get(tensors, x) if isinstance(x, (Value, Constant)) else x for x in node.leaves]
            for k, compute in numbers.items():
                leaves[k] = compute(tensors)
            args, kwargs = node.build(leaves)
            out = node.operator(*args, **kwargs)
            for value, tensor in zip(node.outputs, out if node.is_list else [out]):
                if value is not None:
                    tensors[value] = tensor

        self._program.append(run)
        for value in node.outputs:
            if isinstance(value, Constant):
                self._emitted.add(value)
            elif value is not None:
                self._known.see(value)

    def _convolution(self, weight: Weight, stride: int = 1) -> Callable[[Tensor], Tensor]:
        constants = [weight.weight, weight.bias, *(c for norm in weight.norms for c in norm)]
        if any(c in self.sizes.varying for c in constants if isinstance(c, Constant)):
            raise Refused("the weights of a convolution depend on the size of the image")
        kernel = self._buffer((weight, "kernel"), lambda: weight.kernel(weight.weight.dtype))
        shift, padding = weight.shift(weight.weight.dtype), weight.shape[2] // 2
        bias = None if shift is None else self._buffer((weight, "shift"), lambda: shift)

        if weight in self._factors:
            made = Integers.of(weight.kernel(), weight.shift(), self._factors[weight])
            return lambda x: made.convolve(x, stride)

        def convolve(x: Tensor) -> Tensor:
            return F.conv2d(x, getattr(self, kernel), None if bias is None else getattr(self, bias), stride, padding)

        return convolve

    def _enlargement(self, up: Up, output: Value) -> Callable[[Tensors], Tensor]:
        convolve = None if up.weight is None else self._convolution(up.weight)
        align = up.align_corners if up.mode == "bilinear" else None
        rows, columns = self.sizes.of(output)[2:]
        scale = self._scale(up.value, (rows, columns))
        if scale is None:
            # in the terms of the tensors that are there before this step
            sides = [self._number(numbers) for numbers in (rows, columns)]

        def run(tensors: Tensors) -> Tensor:
            x = tensors[up.value] if convolve is None else convolve(tensors[up.value])
            size = None if scale is not None else [side(tensors) for side in sides]
            return F.interpolate(x, size, scale, up.mode, align)

        return run

    def _scale(self, value: Value, sides: tuple[Numbers, Numbers]) -> float | None:
        """The whole factor that both sides grow by, whatever the size; runtimes need not compute sizes then."""
        own = self.sizes.of(value)[2:]
        if not own or all(len(set(numbers)) == 1 for numbers in sides):
            return None
        factors = {n / s for numbers, sizes in zip(sides, own) for n, s in zip(numbers, sizes)}
        scale = factors.pop()
        return scale if not factors and scale == int(scale) else None

    def _sum(self, step: Sum) -> None:
        output = self.sizes.of(step.output)[2:]  # its channels may be those of the projection
        if any(self.sizes.of(value)[2:] != output for value in step.identities):
            raise Refused("whether images are enlarged before they are added depends on the size")
        convolutions = [(c.value, self._convolution(c.weight, c.stride)) for c in step.convs]
        enlargements = [self._enlargement(up, step.output) for up in step.ups]
        project = None if step.projection is None else self._convolution(step.projection)

        def run(tensors: Tensors) -> None:
            # a convolution first: runtimes have kernels for one with an addition and a ReLU behind it
            terms = [convolve(tensors[value]) for value, convolve in convolutions]
            terms += [tensors[value] for value in step.identities]
            terms += [enlarge(tensors) for enlarge in enlargements]
            y = terms[0]
            for term in terms[1:]:
                y = y + term
            y = torch.relu(y) if step.relu else y
            tensors[step.output] = y if project is None else project(y)

        self._program.append(run)
        self._known.see(step.output)
