"""Whether a model is still what it was: its weights, its modules, its hooks."""

from typing import NamedTuple

from torch import nn


class Fingerprint(NamedTuple):
    """What is compared; tensors and modules by identity."""

    structure: tuple  # which tensors, modules and hooks there are
    versions: tuple  # of the tensors

    @classmethod
    def of(cls, model: nn.Module) -> "Fingerprint":
        """Of a model at this moment.

        Writes that leave no trace are not seen: through ``parameter.data``, numpy, DLPack, the storage, and those to
        tensors made under ``torch.inference_mode()``.
        """
        everywhere = nn.modules.module
        modules, tensors = [], []
        for name, m in model.named_modules(remove_duplicate=False):
            named = [(k, t) for place in (m._parameters, m._buffers) for k, t in place.items() if t is not None]
            tensors += [t for _, t in named]
            own = tuple((k, id(t)) for k, t in named)
            modules.append((name, id(m), own, tuple(m._forward_hooks), tuple(m._forward_pre_hooks)))
        of_all = tuple(everywhere._global_forward_hooks), tuple(everywhere._global_forward_pre_hooks)
        structure = (tuple(modules), of_all)
        versions = tuple((None if t.is_inference() else t._version, t.data_ptr()) for t in tensors)
        return cls(structure, versions)
