"""What ``patch`` did, module by module."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One module that was looked at."""

    name: str  #: as in named_modules(); empty for the model itself
    kind: str  #: what it was taken for
    patched: bool  #: whether it is fast now
    detail: str  #: what it became, or why it was left alone


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
        groups = self.groups()
        width = max((len(names) for names, _ in groups), default=0)
        lines = [
            f"{names:{width}}  {row.kind}: {'' if row.patched else 'left alone: '}{row.detail}" for names, row in groups
        ]
        return "\n".join([*lines, self.summary])

    def groups(self) -> list[tuple[str, Row]]:
        """Modules with the same fate together: their names in short, and one of their rows."""
        found: dict[tuple, list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.kind, row.patched, row.detail), []).append(row)
        return [
            ((rows[0].name or "(model)") + (f" and {len(rows) - 1} more" if len(rows) > 1 else ""), rows[0])
            for rows in found.values()
        ]


LOOKED_FOR = (
    "exchange units (modules with fuse_layers), official HRNetV2 networks (stage4 and last_layer or head), FCN heads "
    "with input_transform 'resize_concat', HRFPN (reduction_conv)"
)
