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
        tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        everywhere = nn.modules.module
        hooks = tuple(
            (name, id(m), tuple(m._forward_hooks), tuple(m._forward_pre_hooks)) for name, m in model.named_modules()
        )
        structure = (
            tuple((name, id(t)) for name, t in tensors),
            hooks,
            (tuple(everywhere._global_forward_hooks), tuple(everywhere._global_forward_pre_hooks)),
        )
        versions = tuple((None if t.is_inference() else t._version, t.data_ptr()) for _, t in tensors)
        return cls(structure, versions)
