"""A network's steps by torch's operators and this package's exchange: for GPUs, float64, and what has no kernels."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.network.levels import levels
from hrnet_fast.network.nodes import Constant, Graph, Value
from hrnet_fast.network.sums import Call, Step, Sum, Weight
from hrnet_fast.nn.prepared_conv import PreparedConv
from hrnet_fast.ops.exchange.api import exchange
from hrnet_fast.ops.exchange.call import MAX_INPUTS
from hrnet_fast.runtime.cuda_streams import Branches
from hrnet_fast.runtime.normalization import Normalization

Environment = dict[Value, Tensor]


class TorchSteps:
    """Prepares networks for torch's operators; what it has prepared shares its weights.

    Args:
        dtype: that floating inputs are converted to, and that the network computes in.
        device: of the model.
        memory_format: of images.
        branches: runs independent steps side by side where that is asked for.
        normalization: what the network expects of its images and callers have not done.
    """

    name = "torch"

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format,
        branches: Branches | None,
        normalization: Normalization | None,
    ):
        self.dtype, self.device, self.memory_format = dtype, device, memory_format
        self.branches, self.normalization = branches, normalization
        self._known: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()

    def prepare(self, graph: Graph, steps: list[Step], streams: bool = True) -> "TorchPlan":
        """A network for inputs of the shapes that it was recorded with; ``streams``: on the branches, if any."""
        return TorchPlan(self, graph, steps, self.branches if streams else None)

    def convolution(self, weight: Weight, stride: int, relu: bool) -> PreparedConv:
        """A convolution with its norms, one for all shapes."""

        def make() -> PreparedConv:
            kernel = self._as_computed(weight.kernel(self._wide())).contiguous(memory_format=self.memory_format)
            padding = kernel.shape[2] // 2
            return PreparedConv(
                kernel,
                self._as_computed(weight.shift(self._wide())),
                (stride, stride),
                (padding, padding),
                relu_from=0 if relu else None,
            )

        return self._one(("convolution", weight, stride, relu), make)

    def matrix(self, weight: Weight) -> Tensor:
        """A 1x1 weight [c_out, c_in, 1, 1]."""
        return self._one(("matrix", weight), lambda: self._as_computed(weight.kernel(self._wide())).contiguous())

    def vector(self, weights: tuple[Weight, ...]) -> Tensor | None:
        """The sum of some biases [c_out]; None where there are none."""
        shifts = [shift for w in weights if (shift := w.shift(self._wide())) is not None]
        return self._as_computed(sum(shifts[1:], shifts[0])) if shifts else None

    def constant(self, constant: Constant, recorded: torch.dtype) -> Tensor:
        """What an operator gets for a parameter; ``recorded`` is the dtype that stands for the network's."""

        def make() -> Tensor:
            value = constant.value().detach()
            return value.to(self.dtype) if value.dtype == recorded else value

        return self._one(("constant", constant, recorded), make)

    def refill(self) -> None:
        """Lets everything be made again from the parameters: plans must be prepared anew."""
        self._known.clear()

    def memory(self) -> tuple[int, int]:
        """Bytes of an arena (torch's allocator has it) and of folded weights."""
        tensors = [v.weight if isinstance(v, PreparedConv) else v for v in list(self._known.values())]
        return 0, sum(t.numel() * t.element_size() for t in tensors)

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def _as_computed(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(self.device, self.dtype)

    def _one(self, key: tuple, make: Callable[[], Any]) -> Any:
        found = self._known.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = self._known[key] = make()
        return found


class TorchPlan:
    """A network for inputs of given shapes, ready to run."""

    def __init__(self, owner: TorchSteps, graph: Graph, steps: list[Step], branches: Branches | None):
        self._owner, self._graph, self.steps, self._branches = owner, graph, len(steps), branches
        if branches is None:
            parts = [([step], dead) for step, dead in _deaths(steps, graph)]
        else:  # nothing is freed
            parts = [(level, []) for level in levels(steps, lambda s: s.inputs(), lambda s: s.outputs())]
        # of each level the functions that run its steps, and the values that nobody reads afterwards
        self._levels = [([self._prepared(s) for s in level], dead) for level, dead in parts]

    def __call__(self, inputs: list[Tensor], observe: Callable[[Value, Tensor], None] | None = None) -> list[Tensor]:
        """The graph's ``outputs()`` for the network's inputs, in new memory.

        Args:
            inputs: of the network.
            observe: is called with each value, its tensor in the compute dtype: first the inputs (normalized), then
                what the steps make, before anything reads it. It must not change them.
        """
        owner = self._owner
        if owner.normalization is not None:
            inputs = [owner.normalization(inputs[0])]
        env: Environment = {}
        for value, given in zip(self._graph.inputs, inputs, strict=True):
            made = given.to(owner.dtype) if given.is_floating_point() else given
            env[value] = made.contiguous(memory_format=owner.memory_format) if made.dim() == 4 else made
        if observe is not None:
            for value, made in env.items():
                observe(value, made)
        for functions, dead in self._levels:
            if self._branches is None or len(functions) == 1:
                outcomes = (f(env) for f in functions)
            else:
                outcomes = self._branches.run([functools.partial(f, env) for f in functions])
            for made in outcomes:
                env.update(made)
                if observe is not None:
                    for value, tensor in made.items():
                        observe(value, tensor)
            for value in dead:
                del env[value]
        theirs = {t.untyped_storage().data_ptr() for t in (*inputs, *(env[v] for v in self._graph.inputs if v in env))}
        results = [env[v] for v in self._graph.outputs()]
        return [r.clone() if r.untyped_storage().data_ptr() in theirs else r for r in results]

    def refill(self) -> None:
        """Nothing: it is prepared anew."""

    def _prepared(self, step: Step) -> Callable[[Environment], Environment]:
        return self._call(step) if isinstance(step, Call) else self._sum(step)

    def _call(self, step: Call) -> Callable[[Environment], Environment]:
        node = step.node
        operator = node.for_any_strides()
        constants = {x: self._owner.constant(x, self._graph.dtype) for x in node.leaves if isinstance(x, Constant)}

        def run(env: Environment) -> Environment:
            def argument(x: Any) -> Any:
                return env[x] if isinstance(x, Value) else constants[x] if isinstance(x, Constant) else x

            args, kwargs = node.arguments(argument)
            out = operator(*args, **kwargs)
            return {v: t for v, t in zip(node.outputs, out if node.is_list else [out]) if v is not None}

        return run

    def _sum(self, step: Sum) -> Callable[[Environment], Environment]:
        own = self._owner
        size, mode = tuple(step.output.shape[2:]), step.ups[0].mode if step.ups else "bilinear"
        corners = bool(step.ups) and step.ups[0].align_corners
        activation = "relu" if step.relu else None
        projection = None
        if step.projection is not None:  # its sum has 1x1 weights alone, which the exchange can multiply
            projection = own.matrix(step.projection), own.vector((step.projection,))
        weighted = [(t.value, t.weight) for t in (step.convs if projection else ())] + [
            (u.value, u.weight) for u in step.ups
        ]
        convs = [] if projection else step.convs
        alone = not weighted and not step.identities and len(convs) == 1
        folded = [(c.value, own.convolution(c.weight, c.stride, alone and step.relu)) for c in convs]
        if alone:
            value, conv = folded[0]
            return lambda env: {step.output: conv(env[value])}
        if not weighted and len(convs) == 1 and len(step.identities) == 1 and step.relu:
            value, conv = folded[0]
            return lambda env: {step.output: conv.add_relu(env[value], env[step.identities[0]])}
        matrices = [None if w is None else own.matrix(w) for _, w in weighted]
        bias = own.vector(tuple(w for _, w in weighted if w is not None))
        room = MAX_INPUTS - len(weighted)

        def run(env: Environment) -> Environment:
            terms = [env[v] for v in step.identities] + [conv(env[v]) for v, conv in folded]
            if not weighted and len(terms) <= 2:
                total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
                return {step.output: torch.relu(total) if step.relu else total}
            while len(terms) > room:
                terms = [terms[0] + terms[1], *terms[2:]]
            y = exchange(
                [*terms, *(env[v] for v, _ in weighted)],
                [*[None] * len(terms), *matrices],
                bias,
                size=size,
                mode=mode,
                align_corners=corners,
                activation=activation,
                projection=projection,
            )
            return {step.output: y}

        return run


def _deaths(steps: list[Step], graph: Graph) -> list[tuple[Step, list[Value]]]:
    """Each step with the values that nobody reads after it."""
    read = set(graph.outputs()) | set(graph.inputs)
    found = []
    for step in reversed(steps):
        dead = [v for v in dict.fromkeys((*step.inputs(), *step.outputs())) if v not in read]
        read.update(dead)
        found.append((step, dead))
    return found[::-1]
