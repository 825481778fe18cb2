"""From steps to tasks of grouped launches: images in one arena, channels innermost, a level side by side."""

from hrnet_fast.network.nodes import Graph, Value
from hrnet_fast.network.sums import Conv, Step, Sum, Up, Weight
from hrnet_fast.runtime.cpu.arrange import add_in_place, by_level
from hrnet_fast.runtime.cpu.operations import Buffer, Convolution, Exchange, Image, Lowered, Operation
from hrnet_fast.runtime.cpu.steps import ReorderedLowering
from hrnet_fast.runtime.normalization import Normalization

MAX_TASKS = 32  # of a launch: that of hrnet_fast.kernels.grouped_level, which only machines with Triton can import


def lower(graph: Graph, steps: list[Step], head: bool, normalization: Normalization | None = None) -> Lowered:
    """The operations of a network; those of a step are one launch, or one operator of torch's.

    Args:
        graph: the recorded network.
        steps: what the passes made of it.
        head: whether a head's full-size products and its projection are done inside its sum, in a kernel of their own.
        normalization: what the network expects of its image and the caller has not done.

    Raises:
        Refused: a sum has too many terms.
    """
    return _GroupedLowering(graph, head).run(steps, normalization)


class _GroupedLowering(ReorderedLowering):
    def __init__(self, graph: Graph, head: bool):
        super().__init__(graph, winograd=False, pairs=False, is_packed=None)
        self._head = head

    def run(self, steps: list[Step], normalization: Normalization | None) -> Lowered:
        inputs, outputs, results = self._visit(steps)
        launches = [launch for level in by_level(self._operations) for launch in launches_of(level)]
        add_in_place(launches, results)
        return Lowered(inputs, launches, outputs, self._results, normalization, self._graph.dtype)

    def _output(self, value: Value) -> Image | Buffer:
        if value in self._results:
            return self._results[value]
        image = self._images[value]
        # what nobody else reads is stored into the caller's tensor; the rest is copied from the arena
        image.buffer.external = all(image.buffer is not other.buffer for op in self._operations for other in op.reads())
        return image

    def _up(self, up: Up) -> tuple[Image, Weight | None]:
        return self._low(up), None

    def _stays_alone(self, conv: Conv) -> bool:
        return False

    def _convolution(self, group: list[Conv], output: Image, residual: Image | None, relu: bool) -> None:
        kernel, stride, _ = group[0].geometry
        self._convolve(
            [self._image(c.value) for c in group], [c.weight for c in group], output, kernel, stride, residual, relu
        )

    def _convolve(
        self,
        sources: list[Image],
        weights: list[Weight],
        output: Image,
        kernel: int = 1,
        stride: int = 1,
        residual: Image | None = None,
        relu: bool = False,
    ) -> None:
        from_on = 0 if relu else output.channels
        self._operations.append(Convolution(output, sources, [weights], kernel, stride, residual, from_on))

    def _exchange(self, step: Sum, output: Image, inputs: list, channels: int) -> None:
        if step.projection is None or self._head:
            return super()._exchange(step, output, inputs, channels)
        # the products, then their sum, then the projection, each by itself
        n, _, h, w = step.output.shape
        weighted = [(image, weight) for image, weight in inputs if weight is not None]
        total = self._new((n, channels, h, w))
        summed = [(image, None) for image, weight in inputs if weight is None]
        if weighted:
            product = self._new(total.buffer.shape)
            self._convolve([image for image, _ in weighted], [weight for _, weight in weighted], product)
            summed.append((product, None))
        projection, step.projection = step.projection, None
        try:
            super()._exchange(step, total, summed, channels)
        finally:
            step.projection = projection
        return self._convolve([total], [projection], output)


def is_task(op: Operation) -> bool:
    """Whether it can share a launch: a convolution, or a sum without products inside."""
    return isinstance(op, Convolution) or (isinstance(op, Exchange) and op.projection is None)


def launches_of(level: list[Operation]) -> list[list[Operation]]:
    """A level in launches: tasks together, as many as a launch takes, if they interpolate alike; the rest one by one.

    What is stored into a tensor of the caller's has a launch of its own.
    """
    alone = [[op] for op in level if not is_task(op) or op.output.buffer.external]
    together: dict[tuple, list[Operation]] = {}
    for op in level:
        if is_task(op) and not op.output.buffer.external:
            interpolates = isinstance(op, Exchange) and any(i.size != op.output.size for i, _ in op.inputs)
            together.setdefault((op.mode, op.align_corners) if interpolates else (), []).append(op)
    plain = together.pop((), [])
    groups = list(together.values()) or [[]]
    groups[0] += plain
    return [group[k : k + MAX_TASKS] for group in groups for k in range(0, len(group), MAX_TASKS)] + alone
