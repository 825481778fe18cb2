"""Every default configuration of the Triton kernels, compiled for GPUs that are not there: registers and spills."""

import itertools

import pytest
import torch

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget

from hrnet_fast.kernels import grouped_level, interpolate_argmax, product_up_sum, taps, up_backward, up_sum_relu
from support.exhaustive import chosen
from support.triton_compile import compile_for, machine_code, resources

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
CASES = {
    "c48-float16": (48, torch.float16, torch.channels_last),
    "c18-bfloat16": (18, torch.bfloat16, torch.channels_last),
    "c48-float32": (48, torch.float32, torch.channels_last),
    "c48-float16-contiguous": (48, torch.float16, torch.contiguous_format),
    "c18-float32-contiguous": (18, torch.float32, torch.contiguous_format),
}
# Of 65536 registers a multiprocessor has: 128 keep 512 threads in flight, which the memory needs; the head's products
# need fewer.
MAX_REGISTERS = {"forward": 128, "unit": 128, "backward": 64, "head": 232, "argmax": 128, "grouped": 232}
MAX_SHARED = 64 << 10  # bytes; of a launch of convolutions 112 KiB, of which an H100's multiprocessor has two
MAX_SHARED_GROUPED = 112 << 10
MAX_STACK = 16  # bytes: sm_100 keeps the address of its tensor memory there; a spill takes more
HALF_PIXEL = {"mode": "bilinear", "align_corners": False}


def images(channels, count, dtype, layout, size=(128, 256)):
    return [
        torch.empty(1, channels, size[0] >> k, size[1] >> k, dtype=dtype, device="meta").contiguous(
            memory_format=layout
        )
        for k in range(count)
    ]


def forward(channels, dtype, layout):
    x = images(channels, 4, dtype, layout)
    sums = [up_sum_relu.Sum(torch.empty_like(x[0]), x, torch.empty(channels, dtype=dtype, device="meta"))]
    constants = up_sum_relu.constants(sums, **HALF_PIXEL, relu=True)
    tile = up_sum_relu.tiling(sums, constants["CHANNELS_LAST"])
    return up_sum_relu.up_sum_relu_kernel, up_sum_relu.arguments(sums, constants["MODE"], tile), constants | tile


def unit(channels, dtype, layout):
    """All four outputs of a stage-4 exchange unit in one launch."""
    sums = []
    for i in range(4):
        size = (128 >> i, 256 >> i)
        same = images(channels << i, 1, dtype, layout, size) * (i + 1)
        x = same + images(channels << i, 4 - i, dtype, layout, size)[1:]
        sums.append(up_sum_relu.Sum(torch.empty_like(x[0]), x, None))
    constants = up_sum_relu.constants(sums, **HALF_PIXEL, relu=True)
    tile = up_sum_relu.tiling(sums, constants["CHANNELS_LAST"])
    return up_sum_relu.up_sum_relu_kernel, up_sum_relu.arguments(sums, constants["MODE"], tile), constants | tile


def backward(channels, dtype, layout):
    g, *lows = images(channels, 4, dtype, layout)
    return up_backward.up_backward_kernel, *up_backward.arguments(g, g, lows, g, "bilinear", False)


def head(channels, dtype, layout, projected=19):
    x = images(15 * channels, 4, dtype, layout)
    whole = images(channels, 1, dtype, layout)
    weight = torch.empty(15 * channels, channels, dtype=dtype, device="meta")
    projection = torch.empty(projected, 15 * channels, dtype=dtype, device="meta") if projected else None
    out = images(projected or 15 * channels, 1, dtype, layout)[0]
    bias = torch.empty(15 * channels, dtype=dtype, device="meta")
    positional, constants, _ = product_up_sum.arguments(
        out, whole, [weight], x[1:], bias, projection, None, **HALF_PIXEL, relu=True, tf32=dtype == torch.float32
    )
    return product_up_sum.product_up_sum_kernel, positional, constants


def argmax(classes, dtype, layout):
    (x,) = images(classes, 1, dtype, layout)
    out = torch.empty(1, 512, 1024, dtype=torch.uint8, device="meta")
    positional, constants, _ = interpolate_argmax.arguments(out, x, align_corners=False)
    return interpolate_argmax.interpolate_argmax_kernel, positional, constants


def grouped(dtype, tf32, external):
    """A level of convolutions and sums: a variant for every dtype, whatever the network."""
    arena, biases, table = (torch.empty(8, dtype=d, device="meta") for d in (dtype, torch.float32, torch.int32))
    constants = grouped_level.constants(dtype, tf32, taps.HALF_PIXEL, external)
    return grouped_level.grouped_level_kernel, [arena, arena, arena, biases, table, table, 3], constants


def launches():
    for name, *case in (
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        yield f"grouped-{name}", grouped, (*case, False)
    yield "grouped-float16-external", grouped, (torch.float16, False, True)
    for name, case in CASES.items():
        for build in (forward, unit, backward, argmax):
            yield f"{build.__name__}-{name}", build, case
        if case[2] == torch.channels_last:
            yield f"head-{name}", head, case
            yield f"head-unprojected-{name}", lambda *a: head(*a, projected=0), case


LAUNCHES = {name: (build, case) for name, build, case in launches()}


# by default for one target, of each channels, width of numbers and layout one case
USUAL = ("grouped", "c48-float16", "c18-bfloat16", "c18-float32-contiguous")


@pytest.mark.parametrize(
    ("name", "target"),
    chosen(
        itertools.product(LAUNCHES, TARGETS),
        lambda _, case: case[1] == "sm_90" and (case[0].startswith(USUAL) or case[0].endswith(USUAL)),
        several=True,
    ),
)
def test_compiles_without_spills(name, target, tmp_path):
    build, case = LAUNCHES[name]
    compiled = compile_for(*build(*case), GPUTarget("cuda", TARGETS[target], 32))
    used = resources(compiled, tmp_path)
    assert used.stack <= MAX_STACK, used
    assert used.registers <= MAX_REGISTERS[name.partition("-")[0]], used
    assert used.shared <= (MAX_SHARED_GROUPED if name.startswith("grouped") else MAX_SHARED), used


@pytest.mark.parametrize(
    "name", ["forward-c48-float16", "backward-c48-float16", "head-c48-float16", "argmax-c48-float16", "grouped-float16"]
)
def test_compiles_for_amd(name):
    build, case = LAUNCHES[name]
    assert compile_for(*build(*case), GPUTarget("hip", "gfx942", 64)).asm["hsaco"]


def test_convolutions_keep_tensor_cores_and_memory_busy(tmp_path):
    """Of sm_90: products of warp groups, and 16 bytes at once copied past the registers while they run."""
    code = machine_code(compile_for(*grouped(torch.float16, False, False), GPUTarget("cuda", 90, 32)), tmp_path)
    assert code.count("HGMMA") >= 8
    assert "HMMA.16816" not in code.replace("HGMMA", "")  # the slower kind
    copies, wide = code.count("LDGSTS"), code.count("LDGSTS.E.BYPASS.128")
    assert copies == wide >= 48, (copies, wide)  # both operands of both tiles, several stages ahead
    assert code.count("STG.E.128") == code.count("STG.E") > 0


@pytest.mark.parametrize("name", LAUNCHES)
def test_sizes_do_not_compile_anew(name):
    """Triton compiles once more for each number that is 1 or a multiple of 16, unless it is told not to look."""
    build, case = LAUNCHES[name]
    kernel, positional, _ = build(*case)
    for parameter, value in zip(kernel.params, positional):
        while isinstance(value, tuple) and value:
            value = value[0]
        if isinstance(value, (int, float)):
            assert parameter.do_not_specialize, parameter.name
