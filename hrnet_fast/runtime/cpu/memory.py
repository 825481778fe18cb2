"""Where the images of a planned network lie: those that are not needed at the same time share memory."""

from collections.abc import Callable

from hrnet_fast.runtime.cpu.operations import Buffer, Image, Lowered, TorchCall

ALIGNMENT = 64  # bytes: a cache line, and a register


def place(plan: Lowered, size_of: Callable[[Buffer], int]) -> tuple[dict[Buffer, int], int]:
    """Byte offsets of all buffers in the arena, and its size; ``size_of`` gives the bytes of one.

    The largest first, each at the lowest place where nothing lies that lives at the same time. An image lives from the
    step that writes it to the last one that reads it, both included; a result to the end.
    """
    lives: dict[Buffer, list[int]] = {}
    for k, step in enumerate(plan.steps):
        for operation in step:
            written = [] if isinstance(operation, TorchCall) else [operation.output.buffer]
            for buffer in [*written, *(image.buffer for image in operation.reads())]:
                if not buffer.external:
                    lives.setdefault(buffer, [k, k])[1] = k
    for output in plan.outputs.values():  # copied from the arena when all steps are done
        if isinstance(output, Image) and output.buffer in lives:
            lives[output.buffer][1] = len(plan.steps)
    sizes = {buffer: -(-size_of(buffer) // ALIGNMENT) * ALIGNMENT for buffer in lives}
    offsets: dict[Buffer, int] = {}
    placed: list[tuple[int, int, int, int]] = []  # from, to (bytes), first and last step
    for buffer in sorted(lives, key=lambda b: (-sizes[b], lives[b])):
        size, (first, last) = sizes[buffer], lives[buffer]
        at = 0
        for begin, end, born, gone in sorted(placed):
            if born <= last and first <= gone and begin < at + size and at < end:
                at = end
        offsets[buffer] = at
        placed.append((at, at + size, first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)
