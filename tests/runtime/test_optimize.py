"""hf.optimize: every family and task against float64, shapes, dtypes, threads, changed weights, wrong arguments."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import hrnet_fast as hf
from hrnet_fast.runtime import optimized
from hrnet_fast.runtime import ways as runtime
from hrnet_fast.runtime.cpu import planned
from hrnet_fast.tolerances import MODEL, relative_error
from support.engine_cases import DTYPES, errors, network, plannable, why_not_planned
from support.model_cases import image
from support.patching_cases import FAMILIES

TASKS = ("segmentation", "segmentation_ocr", "classification", "pose", "detection", "features")


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task(task, fast, monkeypatch):
    # where much is left to torch both ways are timed, on a machine that does other things
    monkeypatch.setattr(runtime, "milliseconds", lambda run, x: 1.0 if isinstance(run, planned.Plan) else 2.0)
    model, x = network(task, fast=fast), image()
    optimized = hf.optimize(model, x)
    assert optimized.engine == ("planned" if why_not_planned() is None else "torch"), optimized.reason
    assert max(errors(optimized(x), model, x)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    family = FAMILIES[name]
    model = family.make()
    for k, size in enumerate(sorted(family.sizes, key=lambda size: size[0] * size[1])[:2]):
        x = image(size, batch=1)
        if k == 0:
            optimized = hf.optimize(model, x)
        assert max(errors(optimized(x), model, x)) < 1e-5
    assert why_not_planned() or optimized.engine == "planned", optimized.reason


def test_patched_models_too():
    family = FAMILIES["classification"]
    model, x = family.make(), image((64, 96))
    hf.patch(model)
    classes = [type(m) for m in model.modules()]
    assert max(errors(hf.optimize(model, x)(x), model, x)) < 1e-5
    assert [type(m) for m in model.modules()] == classes


def test_the_original_stays_as_it_is():
    model, x = network(fast=False), image()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        hf.optimize(model, x)(x)
        assert torch.equal(model(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("winograd", [True, False])
def test_dtypes(dtype, winograd):
    model, x = network(), image((128, 96))
    optimized = hf.optimize(model, x, dtype=dtype, winograd=winograd, memory_format=torch.contiguous_format)
    assert optimized.engine == ("planned" if why_not_planned() is None else "torch")
    y = optimized(x)
    assert y.dtype == dtype
    assert max(errors(y, model, x)) < MODEL[dtype]
    for given in (x.to(dtype), x.double(), x.contiguous(memory_format=torch.channels_last)):
        assert relative_error(optimized(given), y) < MODEL[dtype]


@plannable
@pytest.mark.parametrize(("planned_ms", "engine_name"), [(1.0, "planned"), (9.0, "torch")])
def test_in_half_precision_the_faster_engine_is_kept(monkeypatch, planned_ms, engine_name):
    monkeypatch.setattr(runtime, "milliseconds", lambda run, x: planned_ms if isinstance(run, planned.Plan) else 3.0)
    monkeypatch.setattr(planned, "form", lambda dtype: "half")  # which leaves doubt
    model, x = network(), image()
    optimized = hf.optimize(model, x, dtype=torch.bfloat16)
    assert optimized.engine == engine_name
    assert engine_name == "planned" or "3.0 ms, planned 9.0 ms" in optimized.reason
    assert max(errors(optimized(x), model, x)) < MODEL[torch.bfloat16]


@plannable
def test_nothing_is_timed_where_there_is_no_doubt(monkeypatch):
    monkeypatch.setattr(runtime, "milliseconds", lambda run, x: pytest.fail("timed"))
    assert hf.optimize(network(), image()).engine == "planned"
    monkeypatch.setattr(planned, "form", lambda dtype: "tiles")
    assert hf.optimize(network(), image(), dtype=torch.bfloat16).engine == "planned"


def test_float64_is_served_by_torch():
    model, x = network(), image()
    optimized = hf.optimize(model, x, dtype=torch.float64)
    assert optimized.engine == "torch" and "float64" in optimized.reason
    assert max(errors(optimized(x), model, x)) < MODEL[torch.float64]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (70, 250), (16, 400)], ids=str)
def test_sizes(size, batch):
    model, x = network(), image(size, batch)
    assert max(errors(hf.optimize(model, x)(x), model, x)) < 1e-5


@plannable
def test_another_shape_is_prepared_once_and_reported():
    model, x = network(), image()
    optimized = hf.optimize(model, x, max_shapes=2)
    assert [p.shape for p in optimized.preparations] == [tuple(x.shape)]
    for other in (image((96, 64)), image(batch=1), image((96, 64)), image(batch=1)):
        assert max(errors(optimized(other), model, other)) < 1e-5
    assert [p.shape[0] for p in optimized.preparations] == [2, 2, 1]
    assert all(p.seconds > 0 and p.operations > p.steps > 0 for p in optimized.preparations)
    optimized(x)  # the one that was used longest ago had to go
    assert len(optimized.preparations) == 4


def test_results_belong_to_the_caller():
    model, x = network("features"), image()
    optimized = hf.optimize(model, x)
    first = optimized(x)
    kept = [y.clone() for y in first]
    second = optimized(image() + 1)
    assert all(torch.equal(a, b) for a, b in zip(first, kept))
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(first, second))
    for y in first:
        y.zero_()
    assert all(torch.equal(a, b) for a, b in zip(optimized(x), kept))


def test_no_result_is_the_image():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(full_resolution=False)

        def forward(self, x):
            return {"image": x, "logits": self.net(x)}

    x = image()
    for layout in ("auto", torch.channels_last):
        out = hf.optimize(Both().eval(), x, memory_format=layout)(x)
        assert torch.equal(out["image"], x) and out["image"].data_ptr() != x.data_ptr()


def test_bitwise_the_same_for_any_number_of_threads():
    model, x = network(), image((96, 160))
    optimized, threads = hf.optimize(model, x), torch.get_num_threads()
    if optimized.engine != "planned":
        return  # torch's convolutions promise nothing of the kind
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(optimized(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, results[0]) for y in results)


def test_two_threads_may_call_it():
    model, optimized = network(), None
    images = [image(size) + k for k, size in enumerate(((64, 96), (96, 64), (64, 96), (32, 32)))]
    # one algorithm: else a shape that is prepared again takes the one whose weights are packed by then
    optimized = hf.optimize(model, images[0], max_shapes=2, winograd=False)
    expected = [optimized(x) for x in images]
    wrong = []

    def work(k):
        for i in range(6):
            j = (k + i) % len(images)
            if not torch.equal(optimized(images[j]), expected[j]):
                wrong.append(j)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


@pytest.mark.parametrize("layout", ["auto", torch.channels_last], ids=str)
def test_changed_weights(layout):
    model, x = network(fast=False), image()
    optimized = hf.optimize(model, x, memory_format=layout)
    before = optimized(x)
    assert not optimized.is_stale()
    with torch.no_grad():
        model.layer1[0].conv1.weight.mul_(1.5)
        model.stage2[0].fuse_layers[0][1][1].running_mean.add_(0.3)
    assert optimized.is_stale()
    assert torch.equal(optimized(x), before)
    assert optimized.refresh() is optimized
    assert not optimized.is_stale()
    assert max(errors(optimized(x), model, x)) < 1e-5
    assert len(optimized.preparations) == 1  # nothing was recorded again

    model.load_state_dict(network("segmentation").state_dict())
    assert optimized.is_stale()
    model.layer1[0].conv1.weight = nn.Parameter(torch.randn_like(model.layer1[0].conv1.weight) * 0.1)
    model.bn1.num_batches_tracked += 1
    assert max(errors(optimized.refresh()(x), model, x)) < 1e-5


@plannable
def test_no_shape_is_prepared_with_a_mixture_of_weights():
    model, x, other = network(fast=False), image(), image((32, 32))
    optimized = hf.optimize(model, x)
    with torch.no_grad():
        model.layer1[0].conv1.weight.mul_(1.5)
    optimized(x)  # with the weights that it has taken
    with pytest.raises(RuntimeError, match="refresh"):
        optimized(other)
    assert max(errors(optimized.refresh()(other), model, other)) < 1e-5


def test_refresh_of_linear_layers():
    model, x = network("classification"), image()
    optimized = hf.optimize(model, x, dtype=torch.bfloat16)
    optimized(x)
    with torch.no_grad():
        model.classifier.weight.mul_(-2)
    assert max(errors(optimized.refresh()(x), model, x)) < MODEL[torch.bfloat16]


def test_copies_and_pickles():
    model, x = network(), image()
    optimized = hf.optimize(model, x)
    expected = optimized(x)
    assert not list(optimized.parameters()) and not optimized.state_dict()
    for twin in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert torch.equal(twin(x), expected)
        assert twin.engine == optimized.engine


def test_no_gradients_and_no_inference_tensors():
    model, x = network(), image().requires_grad_()
    y = hf.optimize(model, x)(x)
    assert not y.requires_grad and not y.is_inference()
    with torch.inference_mode():
        z = hf.optimize(model, x)(x.detach())
    assert torch.equal(y, z)


def test_says_what_it_is():
    model, x = network(), image()
    assert "engine='torch'" in repr(hf.optimize(model, x, memory_format=torch.channels_last))
    assert "channels_last was asked for" in repr(hf.optimize(model, x, memory_format=torch.channels_last))


def test_a_cpu_without_the_kernels(monkeypatch):
    monkeypatch.setenv("HRNET_FAST_CPU_CAPABILITY", "portable")
    model, x = network(), image()
    optimized = hf.optimize(model, x)
    assert optimized.engine == "torch" and "AVX2" in optimized.reason
    assert max(errors(optimized(x), model, x)) < 1e-5


class Together:
    """In the place of Branches: keeps what it was asked to run together."""

    def __init__(self):
        self.counts = []

    def run(self, functions):
        self.counts.append(len(functions))
        return [function() for function in functions]


@pytest.mark.parametrize("name", ["ours", "classification", "mmseg", "simple-hrnet"])
def test_independent_steps_run_together(name):
    model = network() if name == "ours" else FAMILIES[name].make()
    x, together = image((64, 96)), Together()
    optimized = hf.optimize(model, x, memory_format=torch.channels_last)
    optimized._ways._torch.branches = together
    optimized.refresh()
    assert max(errors(optimized(x), model, x)) < 1e-5
    assert max(together.counts) >= 4  # the branches of stage 4, whatever else is independent


class Reused(nn.Module):
    """Operators in place on tensors that others read, views, results of several kinds."""

    def __init__(self):
        super().__init__()
        self.net = network("features")

    def forward(self, x):
        streams = self.net(x)
        scaled = streams[0].clone().mul_(2)
        flat = streams[1].flatten(2).transpose(1, 2)
        top, index = streams[2].flatten(1).topk(3)
        return streams[0], scaled, flat, top, index.to(torch.float32), streams[3][:, ::2], (streams[3] * 2, streams[3])


def test_what_there_is_no_kernel_for():
    model, x = Reused().eval(), image()
    optimized = hf.optimize(model, x)
    with torch.no_grad():
        expected = flat_all(copy.deepcopy(model).double()(x.double()))
    for _ in range(2):
        for y, ref in zip(flat_all(optimized(x)), expected, strict=True):
            assert relative_error(y, ref) < 1e-5


def flat_all(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat_all(v)]


class Writing(nn.Module):
    """Writes into a buffer, which a recorded network would not do."""

    def __init__(self):
        super().__init__()
        self.net = network("features")
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x)[0] * self.calls


def test_a_network_that_cannot_be_recorded_runs_as_it_is():
    model, x = Writing().eval(), image()
    optimized = hf.optimize(model, x)
    assert optimized.engine == "model" and "writes into the buffer calls" in optimized.reason
    before = model.calls.item()
    first, second = optimized(x), optimized(x)
    assert model.calls == before + 2 and torch.equal(first * (before + 2) / (before + 1), second)


BAD = {
    "model": (lambda m, x: hf.optimize("hrnet", x), TypeError, "nn.Module"),
    "training": (lambda m, x: hf.optimize(m.train(), x), ValueError, "model.eval"),
    "one module in training": (lambda m, x: hf.optimize(_train_one(m), x), ValueError, "layer1.0.bn1 is in training"),
    "compiled": (lambda m, x: hf.optimize(torch.compile(m), x), ValueError, "compiled"),
    "optimized": (lambda m, x: hf.optimize(hf.optimize(m, x), x), ValueError, "optimized already"),
    "not a tensor": (lambda m, x: hf.optimize(m, [x]), TypeError, "example: the model does not take"),
    "rank": (lambda m, x: hf.optimize(m, x[0, 0]), ValueError, r"example: the model does not take \[64, 96\]"),
    "integers": (lambda m, x: hf.optimize(m, (x * 9).to(torch.uint8)), TypeError, "example: .*uint8"),
    "device": (lambda m, x: hf.optimize(m, x.to("meta")), ValueError, "example: it is on meta"),
    "channels": (lambda m, x: hf.optimize(m, x[:, :2]), ValueError, "expected"),
    "dtype": (lambda m, x: hf.optimize(m, x, dtype=torch.int32), TypeError, "int8"),
    "layout": (lambda m, x: hf.optimize(m, x, memory_format="nhwc"), ValueError, "nhwc"),
    "graph": (lambda m, x: hf.optimize(m, x, cuda_graph="yes"), ValueError, "cuda_graph"),
    "streams": (lambda m, x: hf.optimize(m, x, streams=2.5), ValueError, "streams"),
    "shapes": (lambda m, x: hf.optimize(m, x, max_shapes=0), ValueError, "max_shapes"),
    "mean": (lambda m, x: hf.optimize(m, x, mean=[0.5]), ValueError, "mean: expected 3 finite numbers"),
    "std": (lambda m, x: hf.optimize(m, x, std=[1, 1, 0]), ValueError, "std: expected 3 finite, positive"),
    "later rank": (lambda m, x: hf.optimize(m, x)(x[0]), ValueError, "image"),
    "later dtype": (lambda m, x: hf.optimize(m, x)(x.to(torch.int32)), TypeError, "image"),
    "later channels": (lambda m, x: hf.optimize(m, x)(x[:, :2]), ValueError, "3 channels"),
    "later empty": (lambda m, x: hf.optimize(m, x)(x[:0]), ValueError, "empty"),
    "later training": (lambda m, x: hf.optimize(m, x).train(), ValueError, "inference only"),
}


def _train_one(model):
    model.layer1[0].bn1.train()
    return model


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name):
    act, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        act(network(), image())


def test_weights_that_are_not_finite():
    model, x = network(), image()
    optimized = hf.optimize(model, x)
    before = optimized(x)
    with torch.no_grad():
        model.stage4[0].branches[0][0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"stage4\.0\.branches\.0\.0\.conv1\.weight holds NaN"):
        hf.optimize(model, x)
    with pytest.raises(ValueError, match="holds NaN"):
        optimized.refresh()
    assert torch.equal(optimized(x), before)


@plannable  # torch's operators lose them: a ReLU that oneDNN fuses into a convolution makes 0 of NaN
def test_nan_and_inf_in_the_image_come_through():
    model, x = network(), image((256, 256), batch=2)
    x[0, 0, 10, 10] = float("inf")
    y = hf.optimize(model, x)(x)
    assert not torch.isfinite(y[0]).all() and torch.isfinite(y[1]).all()


def test_public_names():
    assert hf.optimize is optimized.optimize and issubclass(optimized.OptimizedModel, nn.Module)


def test_torch_reshapes_where_views_were_recorded():
    """channels_last images cannot be viewed as vectors, which contiguous ones can."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten()).eval()

    class Viewed(nn.Module):
        def forward(self, x):
            y = net[:2](x)
            return y.view(len(y), -1)

    x = torch.randn(2, 3, 16, 16)
    fast = hf.optimize(Viewed().eval(), x, memory_format=torch.channels_last)
    assert fast.engine == "torch"
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_operator_that_demands_dense_images_gets_them(dtype):
    """native_group_norm raises for the strides that images have between the steps."""

    class Sliced(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)[:, 1:]))

    model = Sliced(nn.Conv2d(3, 7, 3, padding=1), nn.GroupNorm(3, 6), nn.Conv2d(6, 4, 1)).eval().to(dtype)
    optimized = hf.optimize(model, torch.randn(1, 3, 24, 32, dtype=dtype))
    assert optimized.engine == ("planned" if dtype == torch.float32 and why_not_planned() is None else "torch")
    for size in ((1, 3, 24, 32), (3, 3, 40, 31), (2, 3, 7, 5)):
        for x in (y := torch.randn(size, dtype=dtype), y.contiguous(memory_format=torch.channels_last)):
            with torch.no_grad():
                assert relative_error(optimized(x), model(x.contiguous())) < MODEL[dtype]
