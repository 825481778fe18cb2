"""A patched model stays a model: whatever is edited later changes it as it changes the model that was not patched."""

import contextlib
import copy
import random
import zlib

import pytest

import hrnet_fast as hf
from hrnet_fast.tolerances import relative_error
from support.edits import (
    AROUND,
    EDITS,
    UNITS,
    Own,
    called,
    double,
    fault,
    frozen,
    observed,
    outcome,
    randomized,
    removed_hook,
    unit,
)
from support.exhaustive import sampled
from support.families import official

CASES, CHUNK = 500, 50


@pytest.mark.parametrize("first", sampled(range(0, CASES, CHUNK), 5))
def test_random_edits(first):
    faults = []
    for seed in range(first, first + CHUNK):
        draw = random.Random(seed)
        own = draw.random() < 0.3
        plain = Own().eval() if own else unit(draw.choice(UNITS), seed)
        plain = randomized(plain) if own else plain
        fast = copy.deepcopy(plain)
        if not own:
            assert hf.patch(fast).patched
        about = [f"seed {seed}: {'own' if own else type(plain).__name__}"]
        for _ in range(draw.randrange(1, 4)):
            around = draw.choice(AROUND) if draw.random() < 0.2 else contextlib.nullcontext
            if draw.random() < 0.6:  # warm
                mode = draw.choice(["evaluation", "evaluation with gradients", "training"])
                about += [mode, around]
                for model in (plain, fast):
                    model.train(mode == "training")
                faults += [f"{about} {f}" for f in [fault(plain, fast, mode, own, around)] if f]
            for model in (plain, fast):
                model.eval()
            edit, same = draw.choice(EDITS), draw.randrange(10**6)
            about.append(edit.__name__)
            errors = [called(edit, model, same) for model in (plain, fast)]
            assert errors[0] == errors[1], about
        around = draw.choice(AROUND) if draw.random() < 0.2 else contextlib.nullcontext
        about.append(around)
        for mode in ("evaluation", "evaluation with gradients", "training"):
            if mode == "training":
                for model in (plain, fast):
                    model.train()
            faults += [f"{about} {f}" for f in [fault(plain, fast, mode, own, around)] if f]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_every_edit_but_some_changes_the_result(edit):
    """An edit that nobody could see would prove nothing."""
    invisible = {removed_hook, observed, double, frozen}
    changed = set()
    for seed, cls in enumerate((official.NearestModule, official.SizedModule)):
        model = unit(cls)
        before, _ = outcome(model, "evaluation", False)
        edit(model, random.Random(seed + zlib.crc32(edit.__name__.encode())))
        after, error = outcome(model, "evaluation", False)
        changed.add(error is not None or max(map(relative_error, after, before)) > 1e-3)
    assert (True in changed) == (edit not in invisible)
