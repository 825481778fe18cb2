"""Recording: what becomes of views, writes, hooks, state and caches, and why a network is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hrnet_fast.network.nodes import Constants, Refused, needed
from hrnet_fast.network.passes import steps_of
from hrnet_fast.network.record import record
from hrnet_fast.network.sums import Call, Sum
from support.snapshot import differences, snapshot, strangers

IMAGE = torch.empty(2, 3, 16, 24)


class Body(nn.Module):
    """A convolution, and ``code``, which is given the module and the image."""

    def __init__(self, code):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.register_buffer("table", torch.ones(3, 1, 1))
        self.code, self.grid, self.calls = code, None, 0

    def forward(self, x):
        return self.code(self, x)


def normalized_in_place(m, x):
    x[:, :3].sub_(0.5).div_(0.25)
    return m.conv(x)


def cached(m, x):
    if m.grid is None:
        m.grid = torch.linspace(0, 1, x.shape[3])
    return m.conv(x) * m.grid


def counted(m, x):
    m.calls += 1
    return m.conv(x)


def stored(m, x):
    m.grid = m.conv(x)
    return m.grid


def remembered(m, x):
    before, m.grid = m.grid, m.conv(x)
    return m.grid if before is None else before


def alternating(m, x):
    m.calls += 1
    return m.conv(x) * (1 if m.calls % 2 else 2)


def drawn(m, x):
    return m.conv(x + torch.rand_like(x))


def written(m, x):
    m.table.mul_(2)
    return m.conv(x * m.table)


def looked_at(m, x):
    return m.conv(x) if x.mean() > 0 else x


def in_training(m, x):
    return m.conv(F.batch_norm(x, m.table.view(3), torch.ones(3), training=True))


def several_at_once(m, x):
    y, z = m.conv(x), m.conv(x) * 2
    torch._foreach_add_([y, z], [z, y])
    return y, z


def by_memory(m, x):
    return m.conv(x) * float(x.numpy().sum())


def into_nothing(m, x):
    made = torch.empty(0)
    torch.add(x, 1, out=made)
    return m.conv(made)


def into_no_channels(m, x):
    y = m.conv(x)
    torch.add(x, 1, out=y[:, :0])  # it would write into y
    return y


@pytest.mark.parametrize("code", [normalized_in_place, cached, counted, several_at_once, into_nothing])
def test_recorded(code):
    model = Body(code).eval()
    before = snapshot(model)
    graph = record(model, (IMAGE,), constants=Constants(), calls=2)
    assert not differences(before, snapshot(model)) and not strangers(model)
    assert all(not n.operator._schema.is_mutable for n in graph.nodes)
    assert bool(graph.writes) == (code is normalized_in_place)


REFUSED = {
    stored: "stores what it computes",
    remembered: "an earlier call has computed",
    alternating: "something else when it is called again",
    drawn: "draws random numbers",
    written: "writes into the buffer 0.table",
    looked_at: "depends on the pixels",
    in_training: "running statistics",
    by_memory: "looks into a tensor by numpy",
    into_no_channels: "resizes a tensor by out=",
}


@pytest.mark.parametrize("code", REFUSED, ids=lambda code: code.__name__)
def test_refused(code):
    model = Body(code).eval()
    before = snapshot(model)
    with pytest.raises(Refused, match=REFUSED[code]):
        record(nn.Sequential(model), (IMAGE,), constants=Constants(), calls=2)
    assert not differences(before, snapshot(model)) and not strangers(model)


def test_the_reason_names_the_module():
    with pytest.raises(Refused, match=r"^1\.0: "):
        record(nn.Sequential(nn.Identity(), nn.Sequential(Body(looked_at))).eval(), (IMAGE,), constants=Constants())


def test_hooks_that_change_something_are_recorded_and_those_that_observe_are_refused():
    seen = []
    model = Body(counted).eval()
    plain = len(record(model, (IMAGE,), constants=Constants()).nodes)
    model.conv.register_forward_hook(lambda module, given, result: result * 2)
    assert len(record(model, (IMAGE,), constants=Constants()).nodes) == plain + 1
    model.conv.register_forward_hook(lambda module, given, result: seen.append(result))
    with pytest.raises(Refused, match="a hook on conv returns nothing"):
        record(model, (IMAGE,), constants=Constants())
    assert not seen and len(model.conv._forward_hooks) == 2


def test_one_constant_for_a_tensor_whatever_the_shape():
    model, constants = Body(cached).eval(), Constants()
    kept = [record(model, (torch.empty(1, 3, 16, w),), constants=constants) for w in (8, 24, 24)]
    weights = [next(n for n in g.nodes if "convolution" in str(n.operator)).leaves[1] for g in kept]
    assert weights[0] is weights[1] is weights[2] and weights[0].tensor is model.conv.weight


def test_parameters_of_inference_mode():
    with torch.inference_mode():
        model = Body(counted).eval()
    assert len(needed(record(model, (IMAGE,), constants=Constants(), calls=2))) == 1


def steps(code):
    return steps_of(record(Body(code).eval(), (IMAGE,), constants=Constants()))


def test_a_projection_needs_1x1_weights_before_it():
    """A 1x1 convolution joins an exchange only where all weights of that are 1x1."""

    def lateral(m, x):
        small = F.avg_pool2d(m.conv(x), 2)
        return m.other(F.relu(m.conv(x) + F.interpolate(small, scale_factor=2)))

    found = [s for s in steps(lateral) if isinstance(s, Sum)]
    assert all(s.projection is None for s in found) and len(found) == 3


def test_mixed_dtypes_stay_with_torch():
    def mixed(m, x):
        return F.relu(m.conv(x).double() + m.conv(x).double()).float()

    assert [type(s) for s in steps(mixed)].count(Call) >= 3
