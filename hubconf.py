"""The configurations for ``torch.hub``: ``torch.hub.load(FOLDER, "hrnet_w48", source="local", task="segmentation")``.

There is an entry point for each of ``hrnet_fast.list_models()``; it takes the arguments that ``hrnet_fast.create_model``
takes behind the name.
"""

import functools

import hrnet_fast

dependencies = ["torch"]


def _entry_point(name):
    @functools.wraps(hrnet_fast.create_model, assigned=("__doc__",))
    def create(*args, **kwargs):
        return hrnet_fast.create_model(name, *args, **kwargs)

    return create


globals().update({_name: _entry_point(_name) for _name in hrnet_fast.list_models()})
