"""``optimize`` in int8: what it asks for, what it refuses, how near it comes, when it takes another dtype instead."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.models import randomize
from hrnet_fast.runtime import ways
from hrnet_fast.runtime.cpu.operations import Convolution, Exchange
from hrnet_fast.tolerances import relative_error

HAS_BYTES = hf.ops.library.extension_error is None and torch.ops.hrnet_fast.has_bytes()
LEVELS = [] if hf.ops.library.extension_error else torch.ops.hrnet_fast.cpu_capabilities().split()
pytestmark = pytest.mark.skipif(not HAS_BYTES, reason="int8 needs the compiled part, and AVX2")
INT8 = torch.int8


@pytest.fixture(scope="module")
def net():
    return randomize(hf.create_model("hrnet_w18_small", task="segmentation", num_classes=5).eval())


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 96, 80, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def int8_pays(monkeypatch):
    """Whatever these small networks and a busy machine say: later measurements are longer."""
    times = iter(range(10**6))
    monkeypatch.setattr(ways, "milliseconds", lambda run, tensors: float(next(times)))


@pytest.fixture(scope="module")
def fast(net, images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "milliseconds", lambda run, tensors: 1.0 if run.products == INT8 else 2.0)
        return hf.optimize(net, images[:1], dtype=INT8, calibration=images)


def operations(fast) -> list:
    """Of the program for the first shape."""
    (prepared, *_) = fast._shapes.values()
    return [op for step in prepared.run._program._plan.steps for op in step]


def in_bytes(fast) -> int:
    return sum(getattr(op, "factors", None) is not None for op in operations(fast))


def test_it_is_near(net, images, fast):
    assert fast.engine == "planned" and fast.reason is None and "int8" in repr(fast)
    assert in_bytes(fast) > 50
    x = torch.randn(1, 3, 96, 80)
    with torch.no_grad():
        expected = net(x)
    y = fast(x)
    assert y.dtype == torch.float32
    assert 1e-3 < relative_error(y, expected) < 6e-2


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 33, 47), (3, 3, 96, 80)], ids=str)
def test_other_shapes_share_the_weights(net, fast, shape):
    before = fast.memory().weights
    x = torch.randn(shape)
    with torch.no_grad():
        assert relative_error(fast(x), net(x)) < 8e-2
    assert fast.memory().weights == before


def test_a_calibration_can_be_saved_and_given_again(net, images, fast, tmp_path):
    pytest.importorskip("safetensors")
    fast.calibration.save(tmp_path / "w18.safetensors")
    again = hf.optimize(net, images[:1], dtype=INT8, calibration=hf.Calibration.load(tmp_path / "w18.safetensors"))
    x = torch.randn(1, 3, 96, 80)
    assert torch.equal(again(x), fast(x))


def test_copies_have_the_calibration(images, fast):
    x = images[1:2]
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other._example[0][0], fast._example[0][0]) and len(other._example[0][0].unique()) > 1
        assert torch.equal(other(x), fast(x))


def test_images_as_an_iterable_of_several_sizes(net, images):
    given = [images[0], images[1:3], torch.randn(1, 3, 64, 96), torch.randn(3, 70, 70)]
    assert hf.optimize(net, images[:1], dtype=INT8, calibration=given).calibration.images == 5
    assert hf.optimize(net, images[:1], dtype=INT8, calibration=(x for x in given)).engine == "planned"


def test_some_convolutions_stay_wider(net, images, fast):
    kept = hf.optimize(net, images[:1], dtype=INT8, calibration=fast.calibration, keep="*stage4*")
    assert 0 < in_bytes(kept) < in_bytes(fast)
    all_kept = hf.optimize(net, images[:1], dtype=INT8, calibration=fast.calibration, keep=["*"])
    assert in_bytes(all_kept) == 0
    x = torch.randn(1, 3, 96, 80)
    with torch.no_grad():
        errors = [relative_error(f(x), net(x)) for f in (fast, kept, all_kept)]
    assert errors[0] > errors[2] and errors[1] > errors[2]
    with pytest.raises(ValueError, match=r"no convolution is called 'stag4\.\*'"):
        hf.optimize(net, images[:1], dtype=INT8, calibration=fast.calibration, keep="stag4.*")


def test_first_images_and_classifiers_are_not_in_bytes(fast):
    convolutions = [op for op in operations(fast) if isinstance(op, Convolution)]
    assert [op.sources[0].channels for op in convolutions if op.factors is None] == [3]
    (head,) = [op for op in operations(fast) if isinstance(op, Exchange) and op.projection is not None]
    assert head.factors is not None


def test_sensitivity_names_the_one_that_loses(net, images):
    harmed = copy.deepcopy(net)
    name, block = next((n, m) for n, m in harmed.named_modules() if "stage3" in n and hasattr(m, "bn1"))
    with torch.no_grad():  # one channel has nearly all of the range, and hardly counts
        block.bn1.weight[0] *= 300
        block.bn1.bias[0] = 300
        block.conv2.weight[:, 0] *= 1e-4
    optimized = hf.optimize(harmed, images[:1], dtype=INT8, calibration=images)
    table = optimized.sensitivity(images[:1])
    assert len(table) == len(optimized.calibration.activations) - 2  # all but the first one and the classifier
    assert [row.error for row in table] == sorted((row.error for row in table), reverse=True)
    assert table[0].name == f"{name}.conv2.weight" and table[0].error > 3 * table[1].error
    assert table[0].name in str(table).splitlines()[1]


def test_what_int8_asks_for(net, images, fast):
    x = images[:1]
    with pytest.raises(ValueError, match="int8 needs some images"):
        hf.optimize(net, x, dtype=INT8)
    with pytest.raises(ValueError, match="it is for int8"):
        hf.optimize(net, x, calibration=images)
    with pytest.raises(ValueError, match="no images at all"):
        hf.optimize(net, x, dtype=INT8, calibration=[])
    with pytest.raises(ValueError, match="NaN or Inf in image 1"):
        hf.optimize(net, x, dtype=INT8, calibration=[x, x * float("nan")])
    with pytest.raises(ValueError, match="all images are constant"):
        hf.optimize(net, x, dtype=INT8, calibration=torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="does not take image 0"):
        hf.optimize(net, x, dtype=INT8, calibration=torch.randn(2, 4, 64, 64))
    with pytest.raises(ValueError, match="ranges"):
        hf.optimize(net, x, dtype=INT8, calibration=images, ranges="least")
    with pytest.raises(TypeError, match="expected a tensor or an iterable"):
        hf.optimize(net, x, dtype=INT8, calibration=5)
    with pytest.raises(ValueError, match="does not take image 0, ndarray: there is no tensor in it"):
        hf.optimize(net, x, dtype=INT8, calibration=[x.numpy()])
    with pytest.raises(TypeError, match="expected names of convolutions"):
        hf.optimize(net, x, dtype=INT8, calibration=images, keep=[3])
    with pytest.raises(RuntimeError, match="belongs to the old weights"):
        fast.refresh()
    other = hf.create_model("hrnet_w18_small", task="classification").eval()
    with pytest.raises(ValueError, match="of another network"):
        hf.optimize(other, torch.randn(1, 3, 64, 64), dtype=INT8, calibration=fast.calibration)
    with pytest.raises(RuntimeError, match="only int8"):
        hf.optimize(net, x).sensitivity(images)


def test_where_it_does_not_pay_another_dtype_runs(net, images, fast, monkeypatch):
    monkeypatch.setattr(ways, "milliseconds", lambda run, tensors: 5.0 if run.products == INT8 else 3.0)
    other = hf.optimize(net, images[:1], dtype=INT8, calibration=fast.calibration)
    assert other.engine == "planned" and other.reason == "int8 does not pay here: 5.0 ms, without it 3.0 ms"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(other(x), net(x)) < 3e-2 and other(x).dtype == torch.float32
    assert other.preparations[-1].reason == other.reason


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(net, images, fast, monkeypatch, level):
    """Faster, or not: in both cases it is near, in float32, and says what runs."""
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", level)
    x = images[1:2]
    with torch.no_grad():
        expected = net(x)
    for pays in (True, False):

        def measured(run, tensors, pays: bool = pays) -> float:
            return 1.0 if (run.products == INT8) == pays else 2.0

        monkeypatch.setattr(ways, "milliseconds", measured)
        made = hf.optimize(net, images[:1], dtype=INT8, calibration=fast.calibration)
        assert made.engine == ("planned" if level != "portable" else "torch")
        assert (made.reason is None) == (pays and level != "portable")
        assert made(x).dtype == torch.float32 and relative_error(made(x), expected) < 6e-2
        assert made.memory().weights > 0


def test_a_cpu_without_instructions_says_so(net, images, fast, monkeypatch):
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", "portable")
    other = hf.optimize(net, images[:1], dtype=INT8, calibration=fast.calibration)
    assert "int8 needs" in other.reason or "planned" in other.reason
    with torch.no_grad():
        assert relative_error(other(images[:1]), net(images[:1])) < 1e-4


def test_an_image_unlike_those_of_the_calibration_is_refused(net, images, fast):
    other = hf.optimize(net, images[:1] * 50, dtype=INT8, calibration=fast.calibration)
    assert "int8 gave something else than the model" in other.reason and other.engine == "planned"
    with torch.no_grad():
        assert relative_error(other(images[:1]), net(images[:1])) < 3e-2


def test_networks_with_operators_of_torch_between_them(images):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)
            self.c, self.d = nn.Conv2d(20, 20, 1), nn.Linear(20, 4)

        def forward(self, x):
            x = nn.functional.gelu(self.a(x))
            x = nn.functional.silu(self.b(x)) + x
            return self.d(self.c(x).relu().mean((2, 3)))

    torch.manual_seed(0)
    net = randomize(Net().eval())
    fast = hf.optimize(net, images[:1], dtype=INT8, calibration=images)
    assert fast.reason is None and in_bytes(fast) == 2
    with torch.no_grad():
        assert relative_error(fast(images), net(images)) < 3e-2


def test_networks_that_do_not_take_channels_last(images):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(48 * 40 * 8, 4)

        def forward(self, x):
            x = self.b(self.a(x).relu()).relu()
            return self.c(x.view(len(x), -1))

    torch.manual_seed(0)
    net = Net().eval()
    fast = hf.optimize(net, images[:1], dtype=INT8, calibration=images)
    assert fast.reason is None and in_bytes(fast) == 1
    with torch.no_grad():
        assert relative_error(fast(images[:1]), net(images[:1])) < 3e-2


def test_kernels_that_tiles_do_not_know_say_so(images):
    net = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    assert hf.optimize(net, images[:1], dtype=INT8, calibration=images).reason == "int8: a convolution of 5x5"
