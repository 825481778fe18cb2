"""What reaches the kernels by torch.ops.hrnet_fast directly: every argument is checked before anything is touched.

The fuzzer changes programs that the planner made and runs them in a process of their own: an exception, or a run
without a signal. `make sanitize` runs it on a build that stops at the first wrong access.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hrnet_fast.runtime.cpu.encode import Program
from hrnet_fast.runtime.cpu.packed_weights import PackedWeights
from runtime.cpu.test_kernels import lowered

ops = torch.ops.hrnet_fast
planned = pytest.mark.planned
HUGE = [2**63 - 1, 2**62, 2**61 + 1, 2**33, 2**32 + 3, 2**31]
# of one convolution in a program: its words in order, as in Program._convolution with one source
ALGORITHM, PACKED, N, H, W, C_OUT, KERNEL, STRIDE, RELU_FROM, SOURCES, SOURCE = range(3, 14)
OUTPUT, RESIDUAL, WEIGHT = (
    SOURCE + 5,
    SOURCE + 10,
    SOURCE + 15,
)  # dtype, channels, image stride, base, offset; addresses


@pytest.fixture
def one():
    """A convolution [1, 8, 16, 16] -> [1, 8, 16, 16]: its program, its arena, and its constants and images."""
    conv = torch.nn.Conv2d(8, 8, 3, padding=1)
    program = Program(lowered(conv, (1, 8, 16, 16)), PackedWeights(slab=0), torch.float32)
    (piece,) = program._pieces
    return piece.steps, torch.empty(0, dtype=torch.uint8), [*program._blobs, *torch.randn(2, 1, 8, 16, 16)]


def changed(steps, *words):
    steps = steps.clone()
    for at, word in words:
        steps[at] = word
    return steps


@planned
def test_the_program_is_as_these_tests_think(one):
    steps, arena, others = one
    assert steps[:3].tolist() == [1, len(steps) - 2, 1] and steps[N:STRIDE].tolist() == [1, 16, 16, 8, 3]
    ops.run_program(steps, arena, others)
    assert others[-1].abs().sum() > 0


@planned
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int16, torch.float64, torch.int64, torch.complex64])
def test_tensors_of_other_dtypes_are_refused(one, dtype):
    """int8 and bool had counted two bytes an element."""
    steps, arena, others = one
    with pytest.raises(RuntimeError, match="expected tensors of float32"):
        ops.run_program(steps, arena, [*others[:-1], torch.zeros(1, 8, 16, 16).to(dtype)])


@planned
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tensor_must_have_the_dtype_that_is_written(one, dtype):
    steps, arena, others = one
    with pytest.raises(RuntimeError, match="another dtype"):
        ops.run_program(steps, arena, [*others[:-1], torch.zeros(2, 8, 16, 16, dtype=dtype)])


@planned
@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize(
    "words",
    [
        (N,),
        (H,),
        (W,),
        (C_OUT,),
        (H, W),
        (N, H, W),
        (SOURCE + 1,),
        (OUTPUT + 1,),
        (C_OUT, OUTPUT + 1, RESIDUAL + 1),
        (SOURCE + 2,),
        (N, SOURCE + 2),
        (KERNEL,),
        (STRIDE,),
        (SOURCES,),
        (ALGORITHM,),
        (PACKED,),
        (SOURCE + 3,),
        (SOURCE + 4,),
        (WEIGHT,),
        (WEIGHT + 1,),
    ],
    ids=str,
)
def test_sizes_beyond_64_bits_are_errors(one, words, huge):
    steps, arena, others = one
    before = others[-1].clone()
    for sign in (1, -1):
        if words == (SOURCE + 2,) and sign == 1:
            continue  # there is no second image
        with pytest.raises(RuntimeError):
            ops.run_program(changed(steps, *((at, sign * huge) for at in words)), arena, others)
    assert torch.equal(others[-1], before)


@planned
def test_weights_that_are_packed_for_another_algorithm_are_refused(one):
    steps, arena, others = one
    for algorithm, packed in itertools.product(range(6), repeat=2):
        if packed not in (algorithm, algorithm + (algorithm % 3 == 1)):
            with pytest.raises(RuntimeError, match="that the kernels do not know"):
                ops.run_program(changed(steps, (ALGORITHM, algorithm), (PACKED, packed)), arena, others)


@planned
def test_nothing_runs_before_all_is_checked(one):
    steps, arena, others = one
    others[-1].zero_()
    for second in (changed(steps, (H, 17)), torch.tensor([3, 0]), torch.tensor([1, 9]), torch.tensor([1])):
        with pytest.raises(RuntimeError):
            ops.run_program(torch.cat([steps, second]), arena, others)
    assert not others[-1].any()


@planned
def test_addresses_that_are_not_aligned_and_tensors_without_memory_are_refused(one):
    steps, arena, others = one
    loose = torch.zeros(8 * 16 * 16 * 4 + 8, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="not aligned"):
        ops.run_program(changed(steps, (OUTPUT + 4, 2)), arena, [*others[:-1], loose])
    others[-1].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="without memory"):
        ops.run_program(steps, arena, others)


@planned
def test_a_program_that_writes_over_itself_is_read_before(one):
    steps, arena, others = one
    room = torch.zeros(8 * 16 * 16 * 4, dtype=torch.uint8)
    room[: steps.numel() * 8].view(torch.int64).copy_(steps)
    ops.run_program(room[: steps.numel() * 8].view(torch.int64), arena, [*others[:-1], room])
    ops.run_program(steps, arena, others)
    assert torch.equal(room.view(torch.float32), others[-1].flatten())


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 8, 8, 3),
        (6, 8, 8, 3),
        (2**32, 8, 8, 3),
        (0, 0, 8, 3),
        (0, 8, -8, 3),
        (0, 8, 8, 2),
        (0, 8, 8, 2**32 + 3),
        (1, 8, 8, 5),
        (0, 2**62, 2**62, 3),
        (0, 2**63 - 1, 1, 3),
        (3, 1, 2**63 - 1, 3),
    ],
)
def test_packed_sizes_of_what_the_kernels_do_not_know_are_errors(arguments):
    with pytest.raises(RuntimeError):
        ops.packed_convolution_size(*arguments)
    assert ops.packed_convolution_size(0, 8, 8, 3) == 12 * 8 * 9


@pytest.mark.parametrize(
    "room",
    [torch.zeros(1), torch.zeros(864, dtype=torch.float64), torch.zeros(1728)[::2], torch.zeros(864, device="meta")],
    ids=["short", "float64", "strided", "meta"],
)
def test_packing_checks_where_it_writes(room):
    weight = torch.randn(8, 8, 3, 3)
    ops.pack_convolution(weight, 0, torch.zeros(864))
    with pytest.raises((RuntimeError, NotImplementedError)):
        ops.pack_convolution(weight, 0, room)
    for wrong in (weight.double(), weight[:, :, :2], weight.flatten(), weight.transpose(0, 1), weight[:0]):
        with pytest.raises(RuntimeError):
            ops.pack_convolution(wrong, 0, torch.zeros(864))


@planned
@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_the_choice_of_an_algorithm_checks_sizes(at):
    for wrong in (0, -1, 2**63 - 1):
        sizes = [1, 48, 128, 128, 48]
        sizes[at] = wrong
        with pytest.raises(RuntimeError):
            ops.cheapest_convolution(*sizes, False, 0)


def test_widths_of_batch_norm_do_not_wrap_around():
    """Four times 2^62 is 0 in 64 bits."""
    x = torch.randn(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError):
        ops.batch_norm(x, torch.ones(4), torch.ones(4), None, None, [2**62, 2**62, 2**62, 2**62, 4], 0, 1e-5)


FUZZER = Path(__file__).parents[2] / "support" / "fuzz_programs.py"


@planned
@pytest.mark.parametrize("seed", range(2))
def test_changed_programs_raise_or_run(seed):
    """A signal ends the process: then its last line says which seed and program it was."""
    count = os.environ.get("HRNET_FAST_FUZZ", "1500")
    done = subprocess.run(
        [sys.executable, str(FUZZER), str(seed), count],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ran, refused = (int(word) for word in done.stdout.split()[-2:])
    assert ran > 0.02 * int(count) and refused > 0.2 * int(count), done.stdout
