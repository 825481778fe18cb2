"""patch and unpatch on every family: the same outputs, gradients, keys and statistics, and all as it was after."""

import copy
import pickle
from collections import Counter

import pytest
import torch

import hrnet_fast as hf
from hrnet_fast.tolerances import relative_error
from support.model_cases import assert_equal, flat, image
from support.patching_cases import FAMILIES, original_and_patched

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def bits(model, x):
    with torch.no_grad():
        return [y.clone() for y in flat(model(x))]


def test_what_is_patched(family):
    report = hf.patch(FAMILIES[family].make())
    assert Counter(row.kind for row in report.patched) == FAMILIES[family].kinds()
    assert all(row.kind == "HRNetV2" for row in report.left_alone)  # a backbone without that head
    assert report.summary in str(report)


def test_same_outputs(family):
    original, patched = FAMILIES[family].make(), FAMILIES[family].make()
    hf.patch(patched)
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in FAMILIES[family].sizes:
            x = image(size, batch=1).contiguous(memory_format=layout)
            assert_equal(patched, original, x, tolerance=1e-5)
            assert_equal(patched, original, x, tolerance=1e-5)  # and from what the first call kept


def test_training_is_the_same(family):
    original, patched = original_and_patched(family)
    x = image((64, 64))
    for model in (original.double(), patched.double()):
        model.train()
        torch.manual_seed(0)  # for dropout
        sum(y.square().mean() for y in flat(model(x.double()))).backward()
    for (name, a), b in zip(original.named_parameters(), patched.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-8, msg=name)
    for (name, a), b in zip(original.named_buffers(), patched.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11, msg=name)
    assert_equal(patched.eval(), original.eval(), x.double(), tolerance=1e-10)


def test_gradients_of_an_evaluated_model(family):
    original, patched = original_and_patched(family)
    grads = []
    for model in (original, patched):
        x = image((64, 64)).requires_grad_()
        sum(y.square().mean() for y in flat(model(x))).backward()
        grads.append([x.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(grads[0]) == len(grads[1])
    assert max(relative_error(b, a) for a, b in zip(*grads, strict=True)) < 1e-4


def test_unpatch_restores_the_bits(family):
    model = FAMILIES[family].make()
    x, types, modules = image(), [type(m) for m in model.modules()], list(model.modules())
    before = bits(model, x)
    hf.patch(model)
    bits(model, x)
    assert hf.unpatch(model) is model
    assert [type(m) for m in model.modules()] == types
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(map(torch.equal, bits(model, x), before))
    assert not [name for m in model.modules() for name in vars(m) if "hrnet_fast" in name]


def test_keys_and_values_stay(family):
    original, patched = original_and_patched(family)
    before, after = original.state_dict(), patched.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    patched.load_state_dict(
        {key: value * 1.02 if value.is_floating_point() else value for key, value in before.items()}
    )
    original.load_state_dict(patched.state_dict())
    assert_equal(patched, original, image())


def test_patching_twice_is_harmless(family):
    original, patched = FAMILIES[family].make(), FAMILIES[family].make()
    first = hf.patch(patched)
    types = [type(m) for m in patched.modules()]
    second = hf.patch(patched)
    assert [type(m) for m in patched.modules()] == types
    assert [row.name for row in second.patched] == [row.name for row in first.patched]
    assert_equal(patched, original, image())


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_patched_and_independent(family, copy_of):
    original, patched = original_and_patched(family)
    bits(patched, image())
    twin = copy_of(patched)
    assert [type(m) for m in twin.modules()] == [type(m) for m in patched.modules()]
    with torch.no_grad():
        for p in patched.parameters():
            p.zero_()
    assert_equal(twin, original, image())
    hf.unpatch(twin)
    assert [type(m) for m in twin.modules()] == [type(m) for m in original.modules()]
    assert_equal(twin, original, image())


def test_to_another_dtype_and_back(family):
    original, patched = original_and_patched(family)
    x = image((64, 64))
    bits(patched, x)
    assert_equal(patched.double(), original.double(), x.double(), tolerance=1e-10)
    assert_equal(patched.float(), original.float(), x)


def test_a_changed_weight_is_folded_again(family):
    original, patched = original_and_patched(family)
    x = image()
    before = bits(patched, x)
    for model in (original, patched):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
    assert_equal(patched, original, x)
    assert relative_error(bits(patched, x)[0], before[0]) > 1e-3


def test_bfloat16_is_no_worse(family):
    original, patched = original_and_patched(family)
    x = image().bfloat16()
    truth = bits(copy.deepcopy(original).bfloat16().double(), x.double())
    theirs, ours = bits(original.bfloat16(), x), bits(patched.bfloat16(), x)
    for y, plain, reference in zip(ours, theirs, truth, strict=True):
        assert relative_error(y, reference) < 1.25 * relative_error(plain, reference)
