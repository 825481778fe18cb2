"""Where operators called by name read and write: memory that is there, and not the same for both."""

import itertools

import pytest
import torch
from torch import nn

from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.runtime.cpu import tiled_steps
from hrnet_fast.runtime.cpu.encode import Program
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from hrnet_fast.runtime.cpu.tiled_encode import TiledProgram
from runtime.cpu.test_kernels import lowered
from runtime.cpu.test_program_arguments import OUTPUT, RESIDUAL, SOURCE, WEIGHT, changed

ops = torch.ops.hrnet_fast
planned = pytest.mark.planned
IMAGE = 8 * 16 * 16 * 4  # bytes
NO_ARENA = torch.empty(0, dtype=torch.uint8)


def one(batch=1):
    """A convolution [N, 8, 16, 16] -> [N, 8, 16, 16]: its program, constants, and bytes for two images and more."""
    program = Program(lowered(nn.Conv2d(8, 8, 3, padding=1), (batch, 8, 16, 16)), PackedWeights(slab=0), torch.float32)
    (piece,) = program._pieces
    room = torch.randn(4 * batch * IMAGE // 4).view(torch.uint8)
    base = len(program._blobs) + 1
    words = changed(piece.steps, (SOURCE + 3, base), (SOURCE + 4, 0), (OUTPUT + 3, base), (OUTPUT + 4, batch * IMAGE))
    return words, [*program._blobs, room], base


def refused(words, others, arena=NO_ARENA):
    before = [t.clone() for t in others]
    with pytest.raises(RuntimeError, match="what is written overlaps what is read or written beside it"):
        ops.run_program(words, arena, others)
    assert all(map(torch.equal, others, before))


@planned
@pytest.mark.parametrize("behind", [0, 4, 1024, IMAGE - 4, -4, -IMAGE + 4])
def test_an_output_over_its_input_is_refused(behind):
    """Its pixels would be read after others were written."""
    words, others, _ = one()
    words = changed(words, (SOURCE + 4, IMAGE))
    ops.run_program(changed(words, (OUTPUT + 4, 0)), NO_ARENA, others)
    ops.run_program(changed(words, (OUTPUT + 4, 2 * IMAGE)), NO_ARENA, others)
    refused(changed(words, (OUTPUT + 4, IMAGE + behind)), others)


@planned
def test_an_output_over_constants_or_views_of_one_memory_is_refused():
    words, others, base = one()
    refused(changed(words, (WEIGHT, base), (WEIGHT + 1, IMAGE)), others)
    whole = others[-1]
    views = [*others[:-1], whole[: 2 * IMAGE], whole[IMAGE : 3 * IMAGE]]
    refused(changed(words, (SOURCE + 4, IMAGE), (OUTPUT + 3, base + 1), (OUTPUT + 4, 0)), views)
    ops.run_program(changed(words, (OUTPUT + 3, base + 1), (OUTPUT + 4, 0)), NO_ARENA, views)


@planned
def test_only_the_very_residual_is_written_over():
    words, others, base = one()
    there = changed(words, (RESIDUAL + 3, base), (RESIDUAL + 4, 2 * IMAGE))
    apart = [t.clone() for t in others]
    ops.run_program(there, NO_ARENA, apart)
    over = [t.clone() for t in others]
    ops.run_program(changed(there, (OUTPUT + 4, 2 * IMAGE)), NO_ARENA, over)
    assert torch.equal(over[-1][2 * IMAGE : 3 * IMAGE], apart[-1][IMAGE : 2 * IMAGE])
    for at in (2 * IMAGE - 4, 2 * IMAGE + 4):
        refused(changed(there, (OUTPUT + 4, at)), others)


@planned
@pytest.mark.parametrize("batch", [2, 3])
def test_channels_of_one_image_side_by_side_do_not_overlap(batch):
    """Concatenated: images of the one lie between images of the other."""
    words, others, _ = one(batch)
    step = 2 * IMAGE // 4
    both = changed(words, (SOURCE + 2, step), (OUTPUT + 2, step), (RESIDUAL + 2, step), (OUTPUT + 4, IMAGE))
    ops.run_program(both, NO_ARENA, others)
    image = others[-1][: batch * 2 * IMAGE].view(torch.float32).view(batch, 16, 16, 16)
    assert image[:, 8:].isfinite().all()
    ops.run_program(changed(both, (SOURCE + 4, IMAGE), (OUTPUT + 4, 2 * IMAGE)), NO_ARENA, others)  # one image later
    for at in (IMAGE - 4, IMAGE + 4, 2 * IMAGE - 4, (2 * batch - 2) * IMAGE):
        refused(changed(both, (OUTPUT + 4, at)), others)
    refused(changed(both, (SOURCE + 2, step + 1)), others)  # images at other distances


@planned
def test_convolutions_side_by_side_do_not_write_what_others_use():
    """They run at the same time."""
    words, others, base = one()
    body = words[3:]
    first, second = body.clone(), body.clone()
    at = {
        name: word - 3 for name, word in {"source": SOURCE + 4, "output": OUTPUT + 4, "residual": RESIDUAL + 4}.items()
    }

    def step(*convolutions):
        return torch.cat([torch.tensor([1, 1 + sum(map(len, convolutions)), len(convolutions)]), *convolutions])

    second[at["output"]] = 2 * IMAGE
    ops.run_program(step(first, second), NO_ARENA, others)
    for place, name in itertools.product((0, IMAGE, IMAGE + 4), ("source", "output", "residual")):
        clash = second.clone()
        if name == "residual":
            clash[at[name] - 1] = base
        clash[at[name]] = place if name != "output" or place else IMAGE - 4
        if name != "output" and place == 0:
            ops.run_program(step(first, clash), NO_ARENA, others)  # both read it
        else:
            refused(step(first, clash), others)


@planned
def test_tiles_are_refused_likewise():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.first(x).relu()
            return (self.second(x) + x).relu()

    graph = record(Block().eval(), (torch.empty(1, 3, 8, 8),), constants=Constants())
    program = TiledProgram(tiled_steps.lower(graph, steps_of(graph), None, None), PackedWeights(slab=0), torch.bfloat16)
    (piece,) = program._pieces
    others = [*program._blobs, *(torch.rand(b.shape).to(b.dtype(torch.bfloat16)) for b in program._external)]
    arena = torch.zeros(program.arena_bytes, dtype=torch.uint8)
    ops.run_program(piece.steps, arena, others)
    words = piece.steps.tolist()
    places = sorted({program._offsets[b] for b in program._offsets})
    clashes = 0
    for at in range(1, len(words)):  # every address in the arena becomes that of another image
        if words[at - 1] == 0 and words[at] in places:
            for place in places:
                given = piece.steps.clone()
                given[at] = place
                try:
                    ops.run_program(given, arena.clone(), others)
                except RuntimeError as error:
                    clashes += "overlaps" in str(error)
    assert clashes >= 4


def test_packing_over_the_weights_is_refused():
    room = torch.randn(864 + 8)
    with pytest.raises(RuntimeError, match="overlaps"):
        ops.pack_convolution(room[: 8 * 8 * 9].view(8, 8, 3, 3), 0, room[8:])
    size = ops.packed_tiles_size(8, 8, 1, False)
    room = torch.randn(size)
    with pytest.raises(RuntimeError, match="overlaps"):
        ops.pack_tiles(room[:64].view(8, 8, 1, 1), room.view(torch.uint8)[:size])


@planned
def test_times_over_the_images_are_refused():
    words, others, _ = one()
    with pytest.raises(RuntimeError, match="overlaps"):
        ops.time_program(words, NO_ARENA, others, others[-1][3 * IMAGE :][:8].view(torch.int64))
    ops.time_program(words, NO_ARENA, others, torch.zeros(1, dtype=torch.int64))


def calls():
    """Of every operator that reads memory: its arguments, in which each tensor is freed in turn."""
    x, low, weight, bias = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 2, 2), torch.randn(4, 3), torch.randn(4)
    dense = x.contiguous(memory_format=torch.channels_last)
    settings = 4, 4, "bilinear", False, True, False
    ones, projection = torch.ones(4), torch.randn(2, 4)
    exchange = [x, low], [weight], 2, bias, projection, torch.randn(2), *settings
    return {
        "exchange": (ops.exchange, exchange),
        "exchange_backward": (ops.exchange_backward, (x, x.relu(), [2, 2], "bilinear", False, True)),
        "batch_norm": (ops.batch_norm, (dense, ones, ones, ones, ones, [4], 1, 1e-5)),
        "batch_norm_backward": (ops.batch_norm_backward, ([dense], dense, ones, ones, ones, ones, 1, 1e-5, True)),
        "interpolate_argmax": (ops.interpolate_argmax, (x, 8, 8, False, torch.int64)),
        "pack_convolution": (ops.pack_convolution, (torch.randn(8, 8, 3, 3), 0, torch.zeros(864))),
        "pack_tiles": (ops.pack_tiles, (torch.randn(1, 1, 1, 1), torch.zeros(ops.packed_tiles_size(1, 1, 1, False), dtype=torch.uint8))),
    }  # fmt: skip


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("left", [0, 4], ids=["freed", "cut short"])
def test_tensors_without_memory_are_errors(name, left):
    """A storage that was freed, as offloading and sharding libraries do, leaves tensors of their old shape."""
    op, arguments = calls()[name]
    op(*arguments)
    flat = torch.utils._pytree.tree_leaves(arguments)
    for k in [k for k, x in enumerate(flat) if isinstance(x, torch.Tensor)]:
        leaves, structure = torch.utils._pytree.tree_flatten(arguments)
        leaves = [x.clone() if isinstance(x, torch.Tensor) else x for x in leaves]
        if leaves[k].numel() * leaves[k].element_size() <= left:
            continue
        leaves[k].untyped_storage().resize_(left)
        with pytest.raises(RuntimeError, match="without memory"):
            op(*torch.utils._pytree.tree_unflatten(leaves, structure))


@planned
@pytest.mark.parametrize("which", ["program", "arena", "images"])
def test_programs_without_memory_are_errors(which):
    words, others, _ = one()
    arena = torch.zeros(64, dtype=torch.uint8)
    {"program": words, "arena": arena, "images": others[-1]}[which].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="without memory"):
        ops.run_program(words, arena, others)
