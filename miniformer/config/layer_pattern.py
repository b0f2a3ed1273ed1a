"""`layers`: a pattern of layers that differ from each other, such as two with a window and one without."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from miniformer.kernel.errors import SpecError, did_you_mean
from miniformer.kernel.spec import ComponentSpec


class LayerSpec(BaseModel):
    """An entry of a pattern: a number of equal layers. A slot that is left out has the model's component."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repeat: int = Field(default=1, ge=1, description="how many such layers follow each other")
    attention: ComponentSpec | None = None
    position: ComponentSpec | None = None
    ffn: ComponentSpec | None = None
    norm: ComponentSpec | None = None


def pattern_of(value: Any) -> list[dict[str, Any]]:
    """The entries of `layers` as mappings, whose names are not looked up yet.

    Raises:
        SpecError: it is no list of mappings, an entry has a field that layers do not have, or repeats less than once.
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, (Mapping, LayerSpec)) for entry in value):
        raise SpecError(f"layers: expected a list of mappings such as {{repeat: 2, attention: mha}}; found {value!r:.80}")
    pattern = [dict(entry) for entry in value]
    for i, entry in enumerate(pattern):
        for name in entry:
            if name not in LayerSpec.model_fields:
                near = did_you_mean(str(name), LayerSpec.model_fields)
                raise SpecError(f"layers.{i}.{name}: there is no {name!r} here{near}")
        repeat = entry.get("repeat", 1)
        if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
            raise SpecError(f"layers.{i}.repeat: expected a whole number from 1 on; found {repeat!r:.80}")
    return pattern


def unique(pattern: Iterable[tuple[LayerSpec, int]]) -> list[tuple[LayerSpec, int]]:
    """The different layers of a pattern in order, each with how often it is there in all."""
    layers: dict[str, LayerSpec] = {}
    counts: Counter[str] = Counter()
    for layer, repeat in pattern:
        key = json.dumps(layer.model_dump(), sort_keys=True)
        layers.setdefault(key, layer)
        counts[key] += repeat
    return [(layer, counts[key]) for key, layer in layers.items()]
