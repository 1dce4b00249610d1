"""Hyper-parameters of the GAT paper, one preset per data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

MONITORS = ("acc", "loss", "acc_or_loss")


@dataclass(frozen=True)
class Preset:
    """One training recipe.

    ``monitor`` names what early stopping watches on the validation nodes: ``acc``, ``loss``, or
    ``acc_or_loss`` (either restarts the patience; weights are kept where both are at their best).
    ``out_heads`` heads of the output layer are averaged.
    """

    name: str
    hidden: int = 8
    heads: int = 8
    out_heads: int = 1
    dropout: float = 0.6
    negative_slope: float = 0.2
    lr: float = 0.005
    weight_decay: float = 5e-4
    epochs: int = 10_000
    patience: int = 100
    monitor: str = "acc_or_loss"

    def __post_init__(self) -> None:
        for field in ("hidden", "heads", "out_heads", "epochs", "patience"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not 0.0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if self.monitor not in MONITORS:
            raise ValueError(f"monitor must be one of {', '.join(MONITORS)}, got '{self.monitor}'")

    def with_options(self, **options: Any) -> Preset:
        """A copy with the options that are not None replaced."""
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(options) - known):
            raise ValueError(f"unknown preset options: {', '.join(unknown)}")
        return replace(self, **{key: value for key, value in options.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("cora"),
        Preset("citeseer", monitor="acc"),
        Preset("pubmed", monitor="acc", out_heads=8, lr=0.01, weight_decay=1e-3),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of a data set. Raises: ValueError listing the choices."""
    if (preset := PRESETS.get(name.lower())) is None:
        raise ValueError(f"unknown data set '{name}'; choose from {', '.join(PRESETS)}")
    return preset
