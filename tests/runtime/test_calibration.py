"""What convolutions multiply, against hooks on the model's own modules; names; the file."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.network.names import names
from hrnet_fast.network.nodes import Constants
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Sum
from hrnet_fast.runtime.arguments import Arguments
from hrnet_fast.runtime.calibration import Activation, Calibration, calibrate
from hrnet_fast.runtime.normalization import Normalization
from hrnet_fast.runtime.torch_steps import TorchSteps
from hrnet_fast.runtime.watch import Recording
from support.engine_cases import network
from support.model_cases import SMALL, image


def recorder(model, normalization=None, seen=None):
    """As the ways of ``optimize`` record; ``seen`` gets the shapes."""
    constants, dtype = Constants(), next(p.dtype for p in model.parameters())

    def record_steps(call):
        if seen is not None:
            seen.append(call.shapes())
        graph = record(model, *call.like(lambda t: t.to(dtype)), constants=constants)
        return Recording(graph, steps_of(graph), normalization)

    return record_steps


def of_images(model, images, **kwargs):
    return calibrate(model, images, **kwargs)


def steps_for(model, size):
    return recorder(model)(Arguments.of((torch.zeros(1, 3, *size),), {})).steps


def inputs_of_convolutions(model, images):
    """Of every convolution module what it got, from the model itself."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda m, args, name=name: found.setdefault(f"{name}.weight", []).append(args[0])
                )
            )
    with torch.no_grad():
        for x in images:
            model(x)
    for hook in hooks:
        hook.remove()
    return found


class Convolutions(nn.Module):
    """One convolution used twice, one with two norms, one with a computed weight."""

    def __init__(self):
        super().__init__()
        self.twice, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 3, padding=1))
        self.plain = torch.ones(2, 2, 1, 1) / 2  # an attribute, no buffer

    def forward(self, x):
        y = torch.relu(self.twice(torch.relu(self.twice(x)) - 5))
        a, b = (torch.relu(norm(self.head(y))) for norm in self.norms)
        return F.conv2d(torch.relu(self.scaled(a + b)), self.plain)


@pytest.fixture
def convolutions():
    return randomize(Convolutions()).eval()


@pytest.mark.parametrize("task", ["segmentation", "pose", "detection"])
def test_ranges_and_means_are_those_of_the_model(task):
    model = randomize(hf.create_model(SMALL, task=task, fast=False)).eval()
    images = [image((64, 96), 1), image((64, 64), 2) * 3]
    found = of_images(model, images, ranges="max")
    truth = inputs_of_convolutions(model, images)
    whole = [name for name in found.activations if "[" not in name]
    sliced = {name.partition("[")[0] for name in found.activations if "[" in name}
    assert {*whole, *sliced} == set(truth) and bool(sliced) == (task != "pose")
    assert found.images == 3
    for name in whole:
        x = torch.cat([t.permute(1, 0, 2, 3).flatten(1) for t in truth[name]], dim=1)
        got = found.of(name, len(x))
        assert got.mean.dtype == torch.float32
        torch.testing.assert_close(got.mean, x.mean(1), rtol=1e-3, atol=1e-4)
        assert got.high == pytest.approx(x.abs().max().item(), rel=1e-4)
        assert got.low == (-got.high if x.min() < 0 else 0.0)


def test_the_streams_of_a_head_are_looked_at_one_by_one():
    model, x = (
        randomize(hf.create_model("hrnet_w18_small", task="segmentation", num_classes=5, fast=False)).eval(),
        image(),
    )
    found = of_images(model, x, ranges="max")
    streams = []
    handle = model.stage4.register_forward_hook(lambda m, args, y: streams.extend(y))
    with torch.no_grad():
        for one in x.split(1):
            model(one)
    handle.remove()
    first = 0
    for k, width in enumerate((16, 32, 64, 128) if streams[0].shape[1] == 16 else (18, 36, 72, 144)):
        y = torch.cat([streams[k], streams[4 + k]])
        got = found.of(f"last_layer.0.weight[{first}:{first + width}]", width)
        assert (got.low, got.high) == (0.0, pytest.approx(y.max().item(), rel=1e-4))
        torch.testing.assert_close(got.mean, y.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        first += width


def test_mse_cuts_off_more_than_max():
    model, x = network(fast=False), image((128, 128), 4)
    most, least = of_images(model, x, ranges="max"), of_images(model, x)
    share = of_images(model, x, ranges="99%")
    assert most.activations.keys() == least.activations.keys() == share.activations.keys()
    pairs = [(least.of(n).high, most.of(n).high, share.of(n).high) for n in most.activations]
    assert all(0 < a <= b and 0 < c <= b for a, b, c in pairs)
    assert sum(a < b for a, b, _ in pairs) > len(pairs) / 2 and sum(c < a for a, _, c in pairs) > len(pairs) / 2


def test_normalization_is_applied():
    model, mean, std = network(fast=False), (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)
    images = (torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255).round()
    normalization = Normalization(mean, std)
    found = calibrate(model, images, record_steps=recorder(model, normalization))
    expected = of_images(model, normalization(images))
    for name, one in expected.activations.items():
        two = found.of(name)
        assert (one.low, one.high) == pytest.approx((two.low, two.high), rel=1e-2)
        torch.testing.assert_close(two.mean, one.mean, rtol=1e-3, atol=1e-4)
    assert found.of("conv1.weight").high < 4 < of_images(model, images).of("conv1.weight").high


def test_all_kinds_of_images_are_the_same(caplog):
    model, x = network(fast=False), image((64, 64), 4)
    expected = of_images(model, x)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, k):
            return x[k]

    kinds = {
        "list": list(x),
        "generator": (one for one in x),
        "batches": x.split(2),
        "tuples": [(one[None],) for one in x],
        "loader": torch.utils.data.DataLoader(Images(), batch_size=3),
        "double": x.double(),
        "other order": x.flip(0),
    }
    for kind, images in kinds.items():
        found = of_images(model, images)
        assert found.images == 4 and found.activations.keys() == expected.activations.keys(), kind
        for name, one in expected.activations.items():
            assert found.of(name)[:2] == pytest.approx(one[:2], rel=2e-2), kind
            torch.testing.assert_close(found.of(name).mean, one.mean, rtol=1e-3, atol=1e-4)
    assert not caplog.records


def test_a_shape_is_recorded_once():
    model, seen = network(fast=False), []
    x = image((64, 64), 1)
    images = [x, image((32, 96), 1), x * 2, image((32, 96), 1), image((64, 64), 2)]
    found = calibrate(model, images, record_steps=recorder(model, seen=seen))
    assert seen == [(1, 3, 64, 64), (1, 3, 32, 96), (2, 3, 64, 64)] and found.images == 6


@pytest.mark.parametrize("fast", [False, True])
def test_a_model_in_another_dtype(fast):
    model = network(fast=fast)
    expected, found = of_images(model, image()), of_images(model.bfloat16(), image())
    assert found.activations.keys() == expected.activations.keys()
    for name, one in expected.activations.items():
        assert found.of(name).high == pytest.approx(one.high, rel=0.1)
        assert found.of(name).mean.dtype == torch.float32


def test_names_are_the_same_for_all_shapes_and_models():
    model = network(fast=False)
    one = names(model, steps_for(model, (64, 64)))
    assert len(set(one.values())) == len(one)
    for other, size in ((model, (33, 130)), (model, (224, 32)), (network(fast=True), (64, 64)), (network(), (96, 40))):
        assert list(names(other, steps_for(other, size)).values()) == list(one.values())
    convolutions = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {name.partition("[")[0] for name in one.values()} == convolutions
    read = [w for s in steps_for(model, (64, 64)) if isinstance(s, Sum) for w in s.weights()]
    assert len(read) == len(one)


def test_names_of_shared_and_computed_weights(convolutions):
    found = names(convolutions, steps_for(convolutions, (16, 16)))
    assert list(found.values()) == ["twice.weight", "head.weight", "head.weight 2", "computed 0", "plain"]
    again = names(convolutions, steps_for(convolutions, (9, 20)))
    assert list(again.values()) == list(found.values())


def test_a_convolution_that_is_used_twice_has_both_statistics(convolutions):
    images = image((16, 16), 4)
    found = of_images(convolutions, images, ranges="max")
    x = torch.cat(inputs_of_convolutions(convolutions, images.split(1))["twice.weight"])
    assert x.shape[0] == 8 and x.min() < -3
    got = found.of("twice.weight")
    assert (got.low, got.high) == pytest.approx((-x.abs().max().item(), x.abs().max().item()))
    torch.testing.assert_close(got.mean, x.mean((0, 2, 3)))
    one, two = found.of("head.weight"), found.of("head.weight 2")
    assert one[:2] == two[:2] and torch.equal(one.mean, two.mean)


def test_keyword_arguments_are_those_of_every_call():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, offset, factor=1.0):
            return self.conv((x + offset) * factor)

    model, x = Scaled().eval(), image((8, 8), 4)
    given = {"offset": torch.full((1, 3, 1, 1), 100.0), "factor": 2.0}
    found = calibrate(model, x, kwargs=given, ranges="max")
    assert found.of("conv.weight").high == pytest.approx(((x + 100) * 2).max().item())


def test_the_model_is_left_as_it_is():
    model = network(fast=False)
    before = {k: (v, v.clone(), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    with torch.inference_mode():
        of_images(model, image())
    after = model.state_dict(keep_vars=True)
    assert all(after[k] is v and torch.equal(v, copy) and v._version == n for k, (v, copy, n) in before.items())


def test_optimized_networks_record_for_it():
    model, x = network(fast=False), image((64, 64), 1)
    ways = hf.optimize(model, x, mean=(0.5, 0.5, 0.5), std=(2.0, 2.0, 2.0))._ways
    images = image((64, 64), 4)
    found = calibrate(model, images, record_steps=ways.record)
    expected = calibrate(model, images, record_steps=recorder(model, Normalization((0.5,) * 3, (2.0,) * 3)))
    assert [a[:2] for a in found.activations.values()] == [a[:2] for a in expected.activations.values()]


def test_plans_show_every_value_in_the_compute_dtype():
    model, x = network(fast=False), image()
    normalization = Normalization((0.5, 0.5, 0.5), (2.0, 2.0, 2.0))
    graph, steps, _ = recorder(model)(Arguments.of((x,), {}))
    plan = TorchSteps(torch.float32, x.device, torch.channels_last, None, normalization).prepare(graph, steps)
    seen = {}
    made = plan([x], lambda value, tensor: seen.setdefault(value, tensor.clone()))
    assert list(seen) == [*graph.inputs, *(v for s in steps for v in s.outputs())]
    assert torch.equal(seen[graph.inputs[0]], normalization(x))
    assert all(tuple(t.shape) == v.shape and t.dtype == torch.float32 for v, t in seen.items())
    for value, one, two in zip(graph.outputs(), made, plan([x])):
        assert torch.equal(one, two) and torch.equal(one, seen[value])


BAD = float("nan")
WRONG = {
    "none": (lambda x: [], "there are no images at all"),
    "none in a tensor": (lambda x: x[:0], "there are no images at all"),
    "channels": (
        lambda x: [x, x[:, :2]],
        r"the model does not take images 4 to 7, \[4, 2, 64, 64\] of torch.float32: ",
    ),
    "rank": (lambda x: [torch.rand(64, 64)], r"the model does not take image 0, \[64, 64\] of torch.float32: "),
    "integers": (lambda x: x.byte(), r"the model does not take image 0, \[1, 3, 64, 64\] of torch.uint8: "),
    "labels": (
        lambda x: [[x, 1]],
        r"the model does not take images 0 to 3, \[4, 3, 64, 64\] of torch.float32: .*got list",
    ),
    "text": (lambda x: ["image.png"], "the model does not take image 0, str: "),
    "too many": (lambda x: [(x, x)], "the model does not take images 0 to 3, .*: "),
    "NaN": (lambda x: [*x, x[0] * BAD], "NaN or Inf in image 4"),
    "Inf": (lambda x: x / 0, "NaN or Inf in image 0"),
    "empty": (lambda x: [x[:, :, :0]], r"an empty tensor in images 0 to 3: \[4, 3, 0, 64\]"),
    "empty batch": (lambda x: [*x, x[:0]], r"an empty tensor in image 4: \[0, 3, 64, 64\]"),
    "constant": (lambda x: torch.ones(3, 3, 64, 64), r"all images are constant \(3 of 3\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_images(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=f"calibration: {message}"):
        of_images(network(fast=False), make(image((64, 64), 4)))


@pytest.mark.parametrize("images", ["folder", b"", {"image": 1}, 3, None, nn.Identity()])
def test_what_gives_no_images(images):
    with pytest.raises(TypeError, match="calibration: expected a tensor or an iterable of images, got"):
        of_images(network(fast=False), images)


def test_ranges_are_checked_before_the_work():
    with pytest.raises(ValueError, match="ranges: expected"):
        calibrate(None, None, ranges="entropy")


def test_integers_are_not_normalized_in_silence():
    model = network(fast=False)
    with pytest.raises(ValueError, match="does not take image 0, .*uint8: mean and std are for images of a floating"):
        calibrate(
            model, image((64, 64), 4).byte(), record_steps=recorder(model, Normalization((120.5,) * 3, (60.5,) * 3))
        )


def test_infinite_values_in_the_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    model[0].weight.data.fill_(1e20)
    with pytest.raises(ValueError, match="calibration: NaN or Inf in front of '2.weight', for image 1"):
        of_images(model, [image((8, 8), 1), image((8, 8), 1) * 1e20])


def test_warnings(caplog):
    model, x = network(fast=False), image((64, 64), 4)
    with caplog.at_level(logging.WARNING, "hrnet_fast"):
        of_images(model, x)
        assert not caplog.records
        of_images(model, x[:3])
        assert "3 images were found" in caplog.text
        caplog.clear()
        of_images(model, x[:1])
        assert "1 image was found" in caplog.text
        caplog.clear()
        x[2] = 0.5
        of_images(model, [x[:1], x[1:]])
        assert "image 2 is constant" in caplog.text and "found" not in caplog.text


def test_zeros_everywhere():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    assert of_images(model, image((8, 8), 4)).of("2.weight")[:2] == (0.0, 1.0)


def test_another_network_is_refused():
    found = of_images(network(fast=False), image())
    with pytest.raises(ValueError, match="of another network: it knows no convolution 'backbone.conv1.weight'"):
        found.of("backbone.conv1.weight")
    assert found.of("conv2.weight", 64) is found.of("conv2.weight")
    wide = hf.create_model("hrnet_w32", task="segmentation", fast=False).eval()
    weight, name = next((w, n) for w, n in names(wide, steps_for(wide, (64, 64))).items() if w.shape[1] == 32)
    with pytest.raises(ValueError, match="of another network: '.*' has 32 input channels, there it has 16"):
        found.of(name, weight.shape[1])


def test_convolutions_of_several_sources_have_what_each_of_them_has():
    parts = {
        "head.weight[0:2]": Activation(0.0, 3.0, torch.tensor([1.0, 2.0])),
        "head.weight[2:3]": Activation(-1.0, 1.0, torch.tensor([3.0])),
        "head.weight[3:5]": Activation(0.0, 2.0, torch.tensor([4.0, 5.0])),
        "other.weight": Activation(0.0, 9.0, torch.zeros(3)),
    }
    found = Calibration(parts, 1)
    assert found.of("head.weight", 5).high == 3.0 and found.of("head.weight").low == -3.0
    assert found.of("head.weight[2:5]").mean.tolist() == [3.0, 4.0, 5.0] and found.of("head.weight[3:5]").low == 0.0
    for name in ("head.weight[0:4]", "head.weight[1:3]", "head", "other.weight[0:1]", "head.weight[0:9]"):
        with pytest.raises(ValueError, match="of another network"):
            found.of(name)
