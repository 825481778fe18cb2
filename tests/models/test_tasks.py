"""Every task of create_model: published counts, fast against plain, sizes, keys, training, graphs, errors."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hrnet_fast as hf
from hrnet_fast.models import multiply_adds, randomize
from hrnet_fast.tolerances import relative_error
from support.model_cases import SMALL, assert_equal, flat, image, pair

TASKS = ["segmentation", "segmentation_ocr", "classification", "pose", "detection", "features"]
aten = torch.ops.aten

# HRNet-Image-Classification's and timm's tables at 224x224: parameters, official GFLOPs, timm's GMACs.
CLASSIFICATION = [
    ("hrnet_w18_small_v1", 13_187_464, "1.49", 1.61),
    ("hrnet_w18_small_v2", 15_597_464, "2.42", 2.62),
    ("hrnet_w18", 21_299_004, "3.99", 4.32),
    ("hrnet_w30", 37_712_220, "7.55", 8.15),
    ("hrnet_w32", 41_232_680, "8.31", 8.97),
    ("hrnet_w40", 57_557_160, "11.8", 12.75),
    ("hrnet_w44", 67_064_984, "13.9", 14.94),
    ("hrnet_w48", 77_469_864, "16.1", 17.34),
    ("hrnet_w64", 128_059_944, "26.9", 28.97),
]


class CountValues(TorchDispatchMode):
    """Values that each operator makes."""

    def __init__(self):
        super().__init__()
        self.values = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.values[function.overloadpacket] += flat(output)[0].numel()
        return output


def timm_gmacs(model, size):
    """As timm's table counts (with fvcore): also two per value of a BatchNorm and one per value upsampled."""
    with torch.device("meta"), torch.no_grad(), CountValues() as counter:
        model(torch.empty(1, 3, *size))
    extra = 2 * counter.values[aten.native_batch_norm] + counter.values[aten.upsample_nearest2d]
    return (multiply_adds(model, size).published + extra) / 1e9


@pytest.mark.parametrize(
    ("name", "parameters", "gflops", "gmacs"), CLASSIFICATION, ids=[row[0] for row in CLASSIFICATION]
)
def test_classification_counts_are_the_published_ones(name, parameters, gflops, gmacs):
    with torch.device("meta"):
        model = hf.create_model(name, task="classification", fast=False).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    digits = len(gflops.partition(".")[2])
    assert f"{multiply_adds(model, (224, 224)).published_gflops:.{digits}f}" == gflops
    assert round(timm_gmacs(model, (224, 224)), 2) == gmacs


# deep-high-resolution-net.pytorch's table of COCO, 17 key points: parameters, GFLOPs at 256x192 and 384x288.
POSE = [("hrnet_w32", 28_536_113, 7.1, 16.0), ("hrnet_w48", 63_595_745, 14.6, 32.9)]


@pytest.mark.parametrize(("name", "parameters", "small", "large"), POSE, ids=[row[0] for row in POSE])
def test_pose_counts_are_the_published_ones(name, parameters, small, large):
    with torch.device("meta"):
        model = hf.create_model(name, task="pose", fast=False)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(multiply_adds(model, (256, 192)).published_gflops, 1) == small
    assert round(multiply_adds(model, (384, 288)).published_gflops, 1) == large


@pytest.mark.parametrize("task", TASKS)
def test_fast_equals_plain(task):
    plain, fast = pair(task=task)
    assert_equal(fast, plain, image())
    if task.startswith("segmentation"):
        assert_equal(fast, plain, image((107, 163)))
        assert_equal(fast, plain, image((1, 1), batch=1))
    elif task != "detection":
        assert_equal(fast, plain, image((29, 61)))  # multiples of 32 after the stem has rounded up


@pytest.mark.parametrize("task", ["classification", "pose"])
def test_fast_equals_plain_with_bilinear_exchange_units(task):
    plain, fast = pair(task=task, upsample="bilinear")
    assert_equal(fast, plain, image((107, 75)))


@pytest.mark.parametrize("align_corners", [False, True])
def test_align_corners_of_the_ocr_network(align_corners):
    plain, fast = pair(task="segmentation_ocr", align_corners=align_corners)
    assert_equal(fast, plain, image((37, 53)))
    other = hf.create_model(SMALL, task="segmentation_ocr", align_corners=not align_corners).eval()
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert relative_error(other(image((37, 53)))[1], plain(image((37, 53)))[1]) > 1e-2


def test_defaults_are_those_of_the_official_repositories():
    recipes = {task: hf.create_model(SMALL, task=task).recipe for task in TASKS}
    assert {t: r["num_classes"] for t, r in recipes.items()} == {
        "segmentation": 19, "segmentation_ocr": 19, "classification": 1000, "pose": 17, "detection": None,
        "features": None}  # fmt: skip
    assert [t for t, r in recipes.items() if r["upsample"] == "bilinear"] == ["segmentation", "segmentation_ocr"]
    assert [t for t, r in recipes.items() if r["align_corners"]] == ["segmentation_ocr"]


SHAPES = {
    "segmentation_ocr": [(2, 5, 64, 96)] * 2,
    "classification": [(2, 5)],
    "pose": [(2, 5, 16, 24)],
    "detection": [(2, 256, 16 >> i, 24 >> i) for i in range(5)],
}


@pytest.mark.parametrize("task", SHAPES)
def test_shapes(task):
    model = hf.create_model(SMALL, task=task, num_classes=5, in_chans=4).eval()
    with torch.no_grad():
        assert [tuple(y.shape) for y in flat(model(image(channels=4)))] == SHAPES[task]


def test_ocr_at_a_quarter_of_the_size():
    plain, fast = pair(task="segmentation_ocr", full_resolution=False)
    assert_equal(fast, plain, image((107, 163)))
    with torch.no_grad():
        assert [tuple(y.shape) for y in fast(image((107, 163)))] == [(2, 19, 27, 41)] * 2


KEYS = {
    "segmentation_ocr": [
        "conv3x3_ocr.0.bias", "conv3x3_ocr.1.weight", "cls_head.weight", "aux_head.0.bias", "aux_head.1.weight",
        "aux_head.3.bias", "ocr_distri_head.conv_bn_dropout.0.weight", "ocr_distri_head.conv_bn_dropout.1.0.weight",
        *(f"ocr_distri_head.object_context_block.{key}.weight" for key in (
            "f_pixel.0", "f_pixel.1.0", "f_pixel.2", "f_pixel.3.0", "f_object.0", "f_object.1.0", "f_object.2",
            "f_object.3.0", "f_down.0", "f_down.1.0", "f_up.0", "f_up.1.0")),
    ],
    "classification": [
        "incre_modules.0.0.conv1.weight", "incre_modules.3.0.downsample.1.weight", "downsamp_modules.0.0.bias",
        "downsamp_modules.2.1.weight", "final_layer.0.bias", "final_layer.1.weight", "classifier.weight",
    ],
    "pose": ["final_layer.weight", "final_layer.bias", "stage4.0.fuse_layers.0.3.1.weight"],
    "detection": ["neck.reduction_conv.0.bias", "neck.fpn_conv.4.weight", "stage4.0.fuse_layers.3.0.2.1.weight"],
}  # fmt: skip


@pytest.mark.parametrize("task", KEYS)
def test_keys_are_the_official_ones(task):
    with torch.device("meta"):
        fast, plain = (hf.create_model(SMALL, task=task, fast=fast).state_dict() for fast in (True, False))
    assert fast.keys() == plain.keys()
    assert not [k for k in KEYS[task] if k not in fast]


def test_the_last_pose_module_has_one_output():
    with torch.device("meta"):
        model = hf.create_model("hrnet_w32", task="pose")
    assert [len(module.fuse_layers) for module in model.stage4] == [4, 4, 1]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("task", ["classification", "pose", "detection"])
def test_nearest_refuses_what_the_official_code_refuses(task, fast):
    model = hf.create_model(SMALL, task=task, fast=fast).eval()
    with pytest.raises(ValueError, match=r"width 100 .*multiple of 32"):
        model(image((64, 100)))


WRONG = [
    (lambda: hf.create_model(SMALL, task="detection", upsample="bilinear")(image((64, 100))), "width 100 .*pyramid"),
    (lambda: hf.create_model(SMALL, task="detection")(image((32, 64))), "height 32 .*at least 64"),
    (lambda: hf.create_model(SMALL, task="pose", align_corners=True), "align_corners: .*'nearest'"),
    (lambda: hf.create_model(SMALL, task="pose", num_classes=0), "num_classes: expected at least 1, got 0"),
    (lambda: hf.create_model(SMALL, task="segmentation_ocr")(image(channels=4)), r"image: expected \[N, 3, H, W\]"),
]


@pytest.mark.parametrize(("action", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()


@pytest.mark.parametrize("task", ["segmentation_ocr", "classification", "pose", "detection"])
def test_gradients_equal_those_of_the_plain_form(task):
    results = []
    for model in pair(task=task):
        model = model.double().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
        loss = sum(y.square().mean() for y in flat(model(image((64, 64), dtype=torch.float64))))
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    total = sum(g.norm() ** 2 for g in results[0]) ** 0.5
    difference = sum((a - b).norm() ** 2 for a, b in zip(*results, strict=True)) ** 0.5
    assert difference < 1e-9 * total


@pytest.mark.parametrize("task", ["segmentation_ocr", "classification", "detection"])
def test_randomize_is_reproducible_and_leaves_the_generator_alone(task):
    first, second = (hf.create_model(SMALL, task=task) for _ in range(2))
    state = torch.get_rng_state()
    for model in (first, second):
        randomize(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in first.modules())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_executed_counts_know_the_fast_heads():
    """The reductions of pyramid and auxiliary head run at each stream's own resolution."""
    c, pixels = 16, 16 * 24
    for task, hidden in (("detection", 256), ("segmentation_ocr", 15 * c)):
        with torch.device("meta"):
            counts = multiply_adds(hf.create_model(SMALL, task=task), (64, 96))
        saved = sum((c << k) * hidden * (pixels - (pixels >> 2 * k)) for k in range(4))
        assert counts.published - counts.executed == saved


@pytest.mark.parametrize("task", ["segmentation_ocr", "classification", "pose", "detection"])
def test_export(task):
    plain, fast = pair(task=task)
    with torch.no_grad():
        program = torch.export.export(fast, (image(batch=1),))
    assert_equal(program.module(), plain, image(batch=1))


@pytest.mark.parametrize("task", ["segmentation_ocr", "classification", "detection"])
def test_compile_without_graph_breaks(task):
    plain, fast = pair(task=task)
    assert_equal(torch.compile(fast, fullgraph=True, backend="eager"), plain, image())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", [torch.jit.trace, lambda model, x: torch.jit.script(model)], ids=["trace", "script"])
@pytest.mark.parametrize("task", ["segmentation_ocr", "classification", "pose", "detection"])
def test_torchscript(task, record):
    plain, fast = pair(task=task)
    with torch.no_grad():
        assert_equal(record(fast, image((64, 64))), plain, image((64, 64)))


@pytest.mark.parametrize("task", TASKS)
def test_symbolic_traces(task):
    """torch.fx, on which feature extractors and quantization are built."""
    model = randomize(hf.create_model(SMALL, task=task)).eval()
    graph, x = torch.fx.symbolic_trace(model), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for y, expected in zip(flat(graph(x)), flat(model(x)), strict=True):
            assert relative_error(y, expected) < 1e-5
