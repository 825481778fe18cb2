"""Whole models: counts, fast against plain, errors, and graphs."""

import math

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.models import configs, multiply_adds, randomize
from hrnet_fast.nn.plain_mode import standard_operators
from hrnet_fast.tolerances import MODEL, relative_error
from support.model_cases import SMALL, assert_equal, image, pair

MODES = [("bilinear", False), ("bilinear", True), ("nearest", False)]
MODE_IDS = ["bilinear", "align-corners", "nearest"]


# The official README's table for Cityscapes, 19 classes, 1024x2048.
PUBLISHED = [
    ("hrnet_w18_small_v1", 1_540_819, 31.1),
    ("hrnet_w18_small_v2", 3_939_579, 71.6),
    ("hrnet_w48", 65_859_379, 696.2),
]


@pytest.mark.parametrize(("name", "parameters", "gflops"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_counts_are_the_published_ones(name, parameters, gflops):
    with torch.device("meta"):
        model = hf.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    counts = multiply_adds(model, (1024, 2048))
    assert round(counts.published_gflops, 1) == gflops
    # the head convolves at each stream's own resolution: by the published figures of its streams' pixels and channels
    c = model.config.width
    hidden, pixels = 15 * c, 256 * 512
    saved = sum((c << k) * hidden * (pixels - (pixels >> 2 * k)) for k in range(4))
    assert counts.published - counts.executed == saved


def test_plain_models_execute_what_is_published():
    with torch.device("meta"):
        counts = multiply_adds(hf.create_model(SMALL, fast=False), (64, 64), batch=2)
    assert counts.published == counts.executed


def test_multiply_adds_wants_one_of_our_models():
    with pytest.raises(TypeError, match="create_model"):
        multiply_adds(torch.nn.Conv2d(3, 3, 1), (8, 8))


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_every_configuration_is_built(name):
    with torch.device("meta"):
        model = hf.create_model(name, task="features")
    width = 16 if name == SMALL else int("".join(filter(str.isdigit, name.removesuffix("_v2"))))
    assert model.config.channels(4) == [width, 2 * width, 4 * width, 8 * width]
    assert [len(getattr(model, f"stage{s}")) for s in (2, 3, 4)] == list(model.config.modules)


KEYS = [
    "conv1.weight",
    "bn2.running_var",
    "layer1.0.conv3.weight",
    "layer1.0.downsample.0.weight",
    "layer1.0.downsample.1.bias",
    "transition1.0.0.weight",
    "transition1.0.1.bias",
    "transition1.1.0.0.weight",
    "transition1.1.0.1.running_mean",
    "transition2.2.0.0.weight",
    "transition3.3.0.1.weight",
    "stage2.0.branches.1.1.bn2.weight",
    "stage3.0.fuse_layers.2.0.1.0.weight",
    "stage4.0.fuse_layers.0.3.1.bias",
    "last_layer.0.bias",
    "last_layer.1.num_batches_tracked",
    "last_layer.3.weight",
]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_keys_are_the_official_ones(fast):
    keys = hf.create_model(SMALL, fast=fast).state_dict().keys()
    assert not [k for k in KEYS if k not in keys]
    assert not [k for k in keys if k.startswith(("transition2.0", "transition2.1", "transition3.0"))]


@pytest.mark.parametrize("task", ["segmentation", "features"])
@pytest.mark.parametrize(("upsample", "align_corners"), MODES, ids=MODE_IDS)
def test_fast_equals_plain(upsample, align_corners, task):
    plain, fast = pair(task=task, upsample=upsample, align_corners=align_corners)
    assert_equal(fast, plain, image())
    if upsample == "bilinear":
        assert_equal(fast, plain, image((107, 163)))
        assert_equal(fast, plain, image((1, 1), batch=1))


def test_fast_equals_plain_with_nearest_units_and_an_aligned_head():
    plain, fast = pair(upsample="nearest", align_corners=True)
    assert_equal(fast, plain, image())


@pytest.mark.parametrize("name", ["hrnet_w18_small_v2", "hrnet_w18"])
def test_fast_equals_plain_in_larger_models(name):
    plain, fast = pair(name)
    assert_equal(fast, plain, image((70, 65), batch=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_fast_equals_plain_in_other_dtypes(dtype):
    plain, fast = pair()
    exact = plain.double()(image(dtype=torch.float64)).detach()
    with torch.no_grad():
        error = relative_error(fast.to(dtype)(image(dtype=dtype)), exact)
        eager = relative_error(plain.to(dtype)(image(dtype=dtype)), exact)
    assert error < max(MODEL[dtype], 1.2 * eager)


def test_channels_last():
    plain, fast = pair()
    fast = fast.to(memory_format=torch.channels_last)
    assert_equal(fast, plain, image((107, 163)).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(("size", "quarter"), [((107, 163), (27, 41)), ((64, 32), (16, 8)), ((1, 5), (1, 2))], ids=str)
def test_sizes_of_the_logits(size, quarter):
    with torch.no_grad():
        assert hf.create_model(SMALL, num_classes=5).eval()(image(size)).shape == (2, 5, *size)
        small = hf.create_model(SMALL, num_classes=5, full_resolution=False, in_chans=1).eval()
        assert small(image(size, channels=1)).shape == (2, 5, *quarter)


def test_sizes_of_the_features():
    model = hf.create_model("hrnet_w18_small", task="features").eval()
    with torch.no_grad():
        shapes = [tuple(y.shape) for y in model(image((64, 96)))]
    assert shapes == [(2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]


@pytest.mark.parametrize("size", [(29, 32), (32, 31), (64, 61)], ids=str)
def test_nearest_takes_what_the_official_code_takes(size):
    """Sizes that are a multiple of 32 only after the stem has rounded up."""
    plain, fast = pair(task="features")
    assert_equal(fast, plain, image(size))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("size", [(28, 32), (32, 48), (107, 64)], ids=str)
def test_nearest_refuses_what_the_official_code_refuses(size, fast):
    model = hf.create_model(SMALL, task="features", fast=fast).eval()
    bad = next(s for s in size if math.ceil(s / 4) % 8)
    with pytest.raises(ValueError, match=rf"{bad} .*multiple of 32"):
        model(image(size))


WRONG = [
    (lambda: hf.create_model("hrnet_w84"), "unknown model 'hrnet_w84'; did you mean hrnet_w"),
    (lambda: hf.create_model("resnet50"), "unknown model 'resnet50'"),
    (lambda: hf.create_model(SMALL, task="depth"), "task: expected one of 'segmentation', .*'features', got 'depth'"),
    (lambda: hf.create_model(SMALL, upsample="cubic"), "upsample: .*'cubic'"),
    (lambda: hf.create_model(SMALL, task="features", align_corners=True), "align_corners"),
    (lambda: hf.create_model(SMALL, num_classes=0), "num_classes: expected at least 1, got 0"),
    (lambda: hf.create_model(SMALL, in_chans=0), "in_chans: expected at least 1, got 0"),
    (lambda: hf.create_model(SMALL)(image(channels=4)), r"image: expected \[N, 3, H, W\], got \[2, 4"),
    (lambda: hf.create_model(SMALL)(image()[0]), r"image: expected \[N, 3, H, W\], got \[3"),
    (lambda: hf.create_model(SMALL)(image((0, 8))), "height must be at least 1 pixel"),
]


@pytest.mark.parametrize(("action", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_training_step_equals_the_plain_form():
    losses = []
    for model in pair():
        model = model.double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(2):
            loss = model(image((64, 64), dtype=torch.float64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_randomize_is_reproducible_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, second = (hf.create_model(SMALL) for _ in range(2))
    torch.set_rng_state(state)
    for model in (first, second):
        randomize(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and first.training
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_compile_without_graph_breaks():
    """Recorded by Dynamo; what follows it is compiled in training below, and in test_compiled_models.py."""
    plain, fast = pair(full_resolution=True)
    assert_equal(torch.compile(fast, fullgraph=True, backend="eager"), plain, image((64, 64)))


def test_compile_trains_without_graph_breaks():
    plain, fast = pair()
    results = []
    for model in (plain, torch.compile(fast, fullgraph=True, backend="aot_eager")):
        model.train()
        model(image((64, 64))).square().mean().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative_error(*results) < 1e-3


def test_inductor_compiles_an_exchange_unit():
    plain, fast = pair(task="features")
    unit, reference = fast.stage2[0].fuse_layers, plain.stage2[0].fuse_layers
    x = [torch.randn(1, c, 16 >> k, 16 >> k) for k, c in enumerate(unit.channels)]
    assert_equal(torch.compile(unit, fullgraph=True), reference, x)


def test_compiled_models_see_new_weights():
    """Under compilation BatchNorm is folded inside the graph, so that there is nothing to become stale."""
    plain, fast = pair()
    unit, reference = fast.stage2[0].fuse_layers, plain.stage2[0].fuse_layers
    compiled = torch.compile(unit, fullgraph=True, backend="eager")
    x = [torch.randn(1, c, 16 >> k, 16 >> k) for k, c in enumerate(unit.channels)]
    assert_equal(compiled, reference, x)
    reference.load_state_dict({k: v * 1.5 for k, v in reference.state_dict().items()})
    unit.load_state_dict(reference.state_dict())
    assert_equal(compiled, reference, x)


def test_export_with_a_dynamic_batch():
    plain, fast = pair()
    with torch.no_grad():
        program = torch.export.export(
            fast, (image((64, 64)),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)
        )
    assert_equal(program.module(), plain, image((64, 64), batch=3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", [torch.jit.trace, lambda model, x: torch.jit.script(model)], ids=["trace", "script"])
def test_torchscript(record):
    plain, fast = pair()
    with torch.no_grad():
        assert_equal(record(fast, image((64, 64))), plain, image((64, 64)))


def test_the_default_onnx_exporter(tmp_path):
    """It knows no operators of others: fast modules are recorded step by step there, as in hrnet_fast.export."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = randomize(hf.create_model(SMALL, task="segmentation")).eval(), image()
    torch.onnx.export(model, (x,), tmp_path / "network.onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative_error(torch.from_numpy(y), model(x)) < 1e-5


def test_hooks_on_stages_are_called():
    """As Grad-CAM and feature extraction need it, in evaluation and in training."""
    model = hf.create_model(SMALL).eval()
    seen = []
    for name in ("layer1", "stage2", "stage3", "stage4"):
        model.get_submodule(name).register_forward_hook(lambda m, args, y, name=name: seen.append(name))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    model.train()(torch.randn(2, 3, 64, 64))
    assert seen == ["layer1", "stage2", "stage3", "stage4"] * 2


def test_another_first_convolution():
    """As people do for images of four channels; the stem is folded with it, and other images are refused."""
    model = hf.create_model(SMALL).eval()
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        model(x[:, :3])  # warm
        model.conv1 = torch.nn.Conv2d(4, 64, 3, 2, 1, bias=False)
        with standard_operators():
            expected = model(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected \[N, 4, H, W\], got \[1, 3, 64, 64\]"):
        model(x[:, :3])
