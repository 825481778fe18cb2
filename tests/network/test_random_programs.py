"""Programs drawn at random go through hf.optimize: right or refused with a reason, and the model as it was."""

import collections
import copy

import pytest
import torch

from support.exhaustive import sampled
from support.judge import INTERNAL, called, judge, leaves, leaves_differ, told
from support.random_programs import STEPS, Program, arguments, build, kinds, state, surroundings
from support.snapshot import differences, snapshot, strangers

PROGRAMS, CHUNK = 600, 25
SIZES = ((2, 32, 48), (1, 33, 47), (3, 40, 31))  # batch, height, width
CHUNKS = [range(first, first + CHUNK) for first in range(0, PROGRAMS, CHUNK)]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small are the maps
    yield
    torch.set_num_threads(threads)


def name(seeds):
    return f"{seeds[0]}-{seeds[-1]}"


def verdict_of(seed, **kwargs):
    program = build(seed)
    with surroundings(program):
        return judge(lambda: build(seed), lambda model, size: arguments(program, *size), SIZES, **kwargs)


@pytest.mark.parametrize("seeds", sampled(CHUNKS, 8), ids=name)
def test_right_or_refused(seeds):
    verdicts = {f"build({seed})": verdict_of(seed) for seed in seeds}
    counts = collections.Counter(v.kind for v in verdicts.values())
    reasons = collections.Counter(v.detail for v in verdicts.values() if v.kind == "refused")
    print(dict(counts), *(f"{n} refused: {reason}" for reason, n in reasons.most_common()), sep="\n")
    assert not told(verdicts), told(verdicts)


@pytest.mark.parametrize("seeds", sampled(CHUNKS[:4], 2), ids=name)
def test_programs_compute_the_same_twice_and_no_constant(seeds):
    flat = set()
    for seed in seeds:
        program, twin = build(seed), copy.deepcopy(build(seed)) if seed % 2 else build(seed)
        with surroundings(program):
            for size in SIZES:
                (result, error), other = (called(m, *arguments(m, *size)) for m in (program, twin))
                assert type(error) is type(other[1]), f"build({seed})"
                if error is not None:
                    assert "odd" in str(error) or "must match" in str(error), f"build({seed}): {error}"
                    assert size != SIZES[0], f"build({seed}): {error}"
                    continue
                assert not leaves_differ(result, other[0], exact=True), f"build({seed})"
                floats = [y for _, y in leaves(result) if isinstance(y, torch.Tensor) and y.is_floating_point()]
                assert all(torch.isfinite(y).all() for y in floats), f"build({seed})"
                logits = next(y for y in floats if y.dim() == 4 and y.shape[1] == 4)
                if logits.std((0, 2, 3)).mean() < 0.01 * logits.abs().mean():
                    flat.add(seed)
    assert len(flat) <= 1, f"constant for all pixels: {flat}"


def test_every_kind_of_step_is_drawn():
    counts = collections.Counter(kind for seed in range(0, PROGRAMS, 3) for kind in set(kinds(build(seed))))
    steps = collections.Counter(kind.split("/")[0] for kind in counts.elements())
    assert {kind.__name__ for kind in STEPS} <= set(steps)
    assert all(n >= 5 for kind, n in steps.items() if not kind.startswith("takes")), steps


class TestSnapshot:
    """What the check for damage sees."""

    def changes(self, change, seed=3):
        program = build(seed)
        before = snapshot(program)
        assert not differences(before, snapshot(program))
        change(program)
        return differences(before, snapshot(program))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda p: p.last.weight.data.add_(1e-6), "other values"),
            (lambda p: p.last.weight.detach().add_(0), "other version"),
            (lambda p: setattr(p.last, "weight", torch.nn.Parameter(p.last.weight.detach().clone())), "was Parameter"),
            (lambda p: setattr(p, "cache", None), "cache is new"),
            (lambda p: delattr(p, "seed"), "seed is gone"),
            (lambda p: setattr(p, "seed", -1), "was 3, is -1"),
            (lambda p: p.last.weight.requires_grad_(False), "other requires_grad"),
            (lambda p: p.last.train(), "training was False"),
            (lambda p: setattr(p.last.weight, "mark", 1), "other attributes"),
        ],
    )
    def test_changes_of_modules_are_seen(self, change, said):
        assert any(said in sentence for sentence in self.changes(change))

    def test_changes_of_classes_globals_hooks_and_closures_are_seen(self):
        seen = []
        program = build(3)
        program.last.register_forward_hook(lambda module, args, output: seen.append(output))
        before = snapshot(program)
        with surroundings(program):
            state.GLOBAL_CACHE[1] = torch.ones(1)
            state.GLOBAL_CALLS[0] += 1
            state.Cached.table["key"] = torch.ones(1)
            Program.mark = 1
            seen.append(1)
            handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
            found = "\n".join(differences(before, snapshot(program)))
            handle.remove()
            del Program.mark
        for said in ("GLOBAL_CACHE", "GLOBAL_CALLS", "Program.mark", "'s seen", "torch's _global_forward_hooks"):
            assert said in found

    def test_tensors_of_recordings_are_seen(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        program = build(3)
        assert not strangers(program)
        with FakeTensorMode() as mode:
            program.cache = [mode.from_tensor(torch.ones(2))]
        program.other = {"a": torch._to_functional_tensor(torch.ones(2))}
        assert strangers(program) == ["model.cache[0]", "model.other['a']"]


@pytest.mark.parametrize(
    "reason", ["KeyError: 3", "AttributeError: 'NoneType' object has no attribute 'x'", "RecursionError"]
)
def test_internal_errors_are_no_reasons(reason):
    assert INTERNAL.search(reason)
