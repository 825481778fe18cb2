"""What ``patch`` did, module by module."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One module that was looked at."""

    name: str  # as in named_modules(); empty for the model itself
    kind: str  # what it was taken for
    patched: bool
    detail: str  # what it became, or why it was left alone


@dataclass
class PatchReport:
    """What became of every module that ``patch`` looked at; ``print`` shows it as text."""

    rows: list[Row] = field(default_factory=list)

    @property
    def patched(self) -> list[Row]:
        """The modules that are fast now."""
        return [row for row in self.rows if row.patched]

    @property
    def left_alone(self) -> list[Row]:
        """The modules that are what they were."""
        return [row for row in self.rows if not row.patched]

    @property
    def summary(self) -> str:
        """One line; where nothing was patched it says what was looked for."""
        if self.patched:
            return f"{len(self.patched)} modules patched, {len(self.left_alone)} left alone"
        return f"nothing was patched, {len(self.left_alone)} modules left alone; looked for {LOOKED_FOR}"

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{row.name or '(model)':{width}}  {row.kind}: {'' if row.patched else 'left alone: '}{row.detail}"
            for row in self.rows
        ]
        return "\n".join([*lines, self.summary])


LOOKED_FOR = (
    "exchange units (modules with fuse_layers), official HRNetV2 networks (stage4 and last_layer or head), FCN heads "
    "with input_transform 'resize_concat', HRFPN (reduction_conv)"
)
