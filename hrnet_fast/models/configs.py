"""The table of HRNet configurations: the ``MODEL.EXTRA`` sections of the official repositories and of timm."""

import difflib
from typing import NamedTuple


class Config(NamedTuple):
    """One HRNet: a stem, bottlenecks at one resolution, and three stages that add a stream each."""

    stem: int  # bottlenecks' channels in stage 1, before their expansion by 4
    bottlenecks: int  # in stage 1
    width: int  # channels C of the highest resolution; the streams have C, 2C, 4C, 8C
    modules: tuple[int, int, int]  # modules in stages 2, 3, 4
    blocks: int  # basic blocks per branch in each module

    def channels(self, streams: int) -> list[int]:
        """Channels of the first ``streams`` streams."""
        return [self.width << k for k in range(streams)]


CONFIGS: dict[str, Config] = {
    "hrnet_w18_small_v1": Config(32, 1, 16, (1, 1, 1), 2),
    "hrnet_w18_small_v2": Config(64, 2, 18, (1, 3, 2), 2),
    **{f"hrnet_w{width}": Config(64, 4, width, (1, 4, 3), 4) for width in (18, 30, 32, 40, 44, 48, 64)},
}

# timm's name -> ours
ALIASES = {"hrnet_w18_small": "hrnet_w18_small_v1"}


def list_models() -> list[str]:
    """Names that ``create_model`` knows, without aliases."""
    return list(CONFIGS)


def find(name: str) -> tuple[str, Config]:
    """The canonical name and the configuration of a model name or alias.

    Raises:
        ValueError: an unknown name; the message names the closest ones.
    """
    canonical = ALIASES.get(name, name)
    if canonical in CONFIGS:
        return canonical, CONFIGS[canonical]
    close = difflib.get_close_matches(str(name), [*CONFIGS, *ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(CONFIGS)}"
    raise ValueError(f"name: unknown model {name!r}; {hint}")
