"""Models on Hugging Face's hub, and in folders like its repositories; huggingface_hub's mixin does the work."""

import functools
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import nn

from hrnet_fast.checkpoints.header import MEAN, STD, Header, read_header, to_metadata
from hrnet_fast.models import create_model

FILE = "model.safetensors"


def from_pretrained(source: str | PathLike, **options: Any) -> nn.Module:
    """The model that ``push_to_hub`` brought to Hugging Face's hub, or ``save_pretrained`` to a folder.

    Args:
        source: "OWNER/NAME", or the folder.
        options: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` as
            ``huggingface_hub.ModelHubMixin.from_pretrained`` has them; the others are those of ``create_model``.

    Raises:
        OSError: there is no such repository or file, or no network and no copy in the hub's cache.
        ValueError: the weights have no header that says what they are, or do not fit.
        ImportError: without the package huggingface_hub.
    """
    return _mixin().from_pretrained(fspath(source), **options)


def save_pretrained(model: nn.Module, folder: str | PathLike) -> Path:
    """Write a model of ``create_model`` as a repository has it: ``model.safetensors`` with a header, config and card.

    Returns:
        The folder.

    Raises:
        ValueError: it is no model of ``create_model``.
        OSError: the folder cannot be written.
        ImportError: without the package huggingface_hub.
    """
    _mixin()(model).save_pretrained(folder, config=_header(model)._asdict())
    return Path(folder)


def push_to_hub(model: nn.Module, repository: str, **options: Any) -> str:
    """The same on Hugging Face's hub; ``from_pretrained(repository)`` gets it back.

    Args:
        model: one of ``create_model``.
        repository: "OWNER/NAME"; made where it is not there.
        options: ``private``, ``token``, ``branch``, ``commit_message`` and the others of
            ``huggingface_hub.ModelHubMixin.push_to_hub``.

    Returns:
        The address of the commit.

    Raises:
        ValueError: it is no model of ``create_model``.
        OSError: the hub cannot be reached, or refuses.
        ImportError: without the package huggingface_hub.
    """
    return str(_mixin()(model).push_to_hub(repository, config=_header(model)._asdict(), **options))


def _header(model: nn.Module) -> Header:
    """What a model says of itself; its images are as in training, or as in the official code."""
    recipe = getattr(model, "recipe", None)
    if not isinstance(recipe, dict):
        raise ValueError(f"model: expected one of create_model, which says how to build it, got {type(model).__name__}")
    about = {k: recipe[k] for k in ("task", "num_classes", "in_chans", "upsample", "align_corners")}
    header = getattr(model, "header", None)
    if isinstance(header, Header):
        return header._replace(model=recipe["name"], **about)
    channels = recipe["in_chans"]
    images = (MEAN, STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    return Header(recipe["name"], **about, mean=images[0], std=images[1], source="hrnet_fast")


@functools.cache
def _mixin() -> type:
    try:
        from huggingface_hub import ModelHubMixin, hf_hub_download
    except ImportError:
        raise ImportError(
            "huggingface_hub is not installed, by which models get to Hugging Face's hub and back: "
            "pip install 'hrnet_fast[hub]'"
        ) from None
    from safetensors.torch import save_file

    class HubModel(ModelHubMixin, library_name="hrnet_fast", tags=["hrnet"]):
        """A model as the mixin wants it."""

        def __init__(self, network: nn.Module):  # no name of the config's: the mixin would pass that as an argument
            self.network = network

        def _save_pretrained(self, save_directory: Path) -> None:
            state = {k: v.detach().clone().contiguous() for k, v in self.network.state_dict().items()}
            save_file(state, save_directory / FILE, to_metadata(_header(self.network)))

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> nn.Module:
            hub = {k: options.pop(k) for k in ("revision", "cache_dir", "force_download", "local_files_only", "token")}
            here = Path(model_id)
            path = here / FILE if here.is_dir() else Path(hf_hub_download(model_id, FILE, **hub))
            header = read_header(path)
            if header is None:
                raise ValueError(f"source: {model_id!r} has weights without a header; save_pretrained writes one")
            return create_model(header.model, header.task, in_chans=header.in_chans, checkpoint=path, **options)

    return HubModel
