"""Small networks drawn at random, of what people write in forward: ``build(seed)`` gives the same program every time.

A program is a list of steps. A step reads maps [N, C, H, W] that earlier steps have made, and gives new maps, and other
tensors (views, sums) that belong to the results. What a step does is decided when it is built, never in forward, but for
what it decides by its input's size or values as its model's code would.

    program = build(17)
    args, kwargs = arguments(program, batch=2, height=33, width=47)
    with surroundings(program):  # the global hooks that it wants
        results = program(*args, **kwargs)

``kinds(program)`` says what it is made of. Programs compute continuous functions of what they compute themselves: numbers
are compared only with the images, which are multiples of 1/256, so that rounding turns no branch.
"""

# the order of these files is the order in which steps are drawn from
from support.random_programs import computing, writes, state, branches  # noqa: I001
from support.random_programs.programs import Program, arguments, build, kinds, surroundings
from support.random_programs.steps import STEPS

__all__ = [
    "STEPS",
    "Program",
    "arguments",
    "branches",
    "build",
    "computing",
    "kinds",
    "state",
    "surroundings",
    "writes",
]
