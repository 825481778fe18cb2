"""Arranges the operations of a planned network: in steps, side by side, in place, in the precision that they need."""

from collections.abc import Iterator

from hrnet_fast.network.levels import levels
from hrnet_fast.runtime.cpu.operations import (
    DIRECT,
    MAX_CONVOLUTIONS,
    PAIRS,
    Buffer,
    Convolution,
    Exchange,
    Image,
    Operation,
    TorchCall,
)
from hrnet_fast.runtime.normalization import Normalization


def by_level(operations: list[Operation]) -> list[list[Operation]]:
    """Operations in levels, those of one of which do not depend on each other."""

    def reads(operation: Operation) -> list[Buffer]:
        return [image.buffer for image in operation.reads()] + getattr(operation, "results", [])

    def makes(operation: Operation) -> list[Buffer]:
        found = operation.outputs if isinstance(operation, TorchCall) else [operation.output.buffer]
        return [buffer for buffer in found if buffer is not None]

    return levels(operations, reads, makes)


def join(level: list[Operation], external: set[Buffer]) -> list[Operation]:
    """Convolutions of one image, alike but for their weights, become one with their output channels side by side."""
    families: dict[tuple, list[Convolution]] = {}
    kept: list[Operation] = []
    for op in level:
        simple = isinstance(op, Convolution) and op.algorithm % PAIRS == DIRECT and op.residual is None
        # the arena's images can lie side by side, what the caller gets cannot
        if simple and not op.output.buffer.external and op.output.buffer not in external:
            families.setdefault((tuple(op.sources), op.kernel, op.stride, op.algorithm), []).append(op)
        else:
            kept.append(op)
    for (sources, kernel, stride, used), members in families.items():
        members.sort(key=lambda op: op.relu_from == 0)
        n, _, h, w = members[0].output.buffer.shape
        whole = Buffer((n, sum(op.output.channels for op in members), h, w))
        first, relu_from = 0, whole.shape[1]
        for op in members:
            if op.relu_from == 0:
                relu_from = min(relu_from, first)
            move(op.output, whole, first)
            first += op.output.channels
        kept.append(
            Convolution(
                Image(whole, 0, whole.shape[1]),
                list(sources),
                [op.weights[0] for op in members],
                kernel,
                stride,
                None,
                relu_from,
                used,
            )
        )
    return kept


def move(image: Image, whole: Buffer, first: int) -> None:
    """Everybody who reads an image finds it in another buffer; Images are shared, hence the write to a frozen one."""
    object.__setattr__(image, "buffer", whole)
    object.__setattr__(image, "first", first)


def widen(steps: list[list[Operation]]) -> None:
    """What is added to is kept in float32: in bfloat16 each addition would round the whole sum of all before it.

    Of the error of whole networks (random weights, w18) this is 2.9e-2 of 3.9e-2, while rounding what convolutions
    multiply is 2.3e-2. Blocks that end with a 1x1 convolution are few and have many channels (0.5e-2): they stay.
    """
    operations = [op for step in steps for op in step]
    for op in operations:
        if isinstance(op, Exchange):
            for image in [op.output, *op.reads()]:
                image.buffer.wide = True
        elif isinstance(op, Convolution) and op.residual is not None and op.kernel == 3:
            op.residual.buffer.wide = True
    changed = True
    while changed:  # a kernel adds what has the dtype of its result
        changed = False
        for op in operations:
            if isinstance(op, Convolution) and op.residual is not None:
                pair = (op.residual.buffer, op.output.buffer)
                if pair[0].wide != pair[1].wide:
                    pair[0].wide = pair[1].wide = changed = True


def normalize(steps: list[list[Operation]], image: Buffer, normalization: Normalization) -> bool:
    """Lets the convolutions that read the image normalize it by their weights; False where something else reads it.

    The image then stays in float32: pixels lie far from zero, and rounded they would lose what normalized ones keep.
    """
    readers = [op for step in steps for op in step if any(read.buffer is image for read in op.reads())]
    if not all(
        isinstance(op, Convolution) and op.residual is None and all(s.buffer is image for s in op.sources)
        for op in readers
    ):
        return False
    for op in readers:  # in float32: rounded weights would multiply the mean as well
        op.algorithm, op.normalization = DIRECT, normalization
    image.wide = True
    return True


def add_in_place(steps: list[list[Operation]], results: set[Buffer]) -> None:
    """Convolutions write over the image that they add, where nobody reads it afterwards: half the memory of a branch.

    A kernel reads the pixels of the residual just before it stores there.
    """
    last: dict[Buffer, tuple[int, int]] = {}  # the step that reads a buffer last, and how often
    for k, step in enumerate(steps):
        for op in step:
            for buffer in (image.buffer for image in op.reads()):
                before = last.get(buffer, (k, 0))
                last[buffer] = (k, before[1] + 1 if before[0] == k else 1)
    for k, step in enumerate(steps):
        for op in step:
            if not isinstance(op, Convolution) or op.residual is None:
                continue
            old, new = op.residual.buffer, op.output.buffer
            alike = (old.shape, old.wide, old.rounded) == (new.shape, new.wide, new.rounded) and old.bytes >= new.bytes
            if last[old] == (k, 1) and alike and not old.external and not {old, new} & results:
                move(op.output, old, 0)
                last[old] = last.pop(new, (k, 1))


def parts(level: list[Operation]) -> Iterator[list[Operation]]:
    """A level's convolutions in groups for one step each; the other operations one by one."""
    convolutions = [op for op in level if isinstance(op, Convolution)]
    for first in range(0, len(convolutions), MAX_CONVOLUTIONS):
        yield convolutions[first : first + MAX_CONVOLUTIONS]
    for op in level:
        if not isinstance(op, Convolution):
            yield [op]
