"""`TransformerConfig`: what a model is made of, as frozen data that is filled, validated whole, and then built from.

The flat fields of older configurations (`activation="swiglu"`, `rotary_pct=0.5`) are shorthands: what is stored and
saved is the explicit form. Names are looked up before anything is imported; options are then checked against the
constructors, and every component is constructed once on the meta device, so a model that cannot be built is refused
before a tensor exists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from miniformer.kernel.errors import SpecError
from miniformer.kernel.options import explain
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec, build, resolve

if TYPE_CHECKING:
    from miniformer.kernel.interfaces import Attention, PositionEncoding

    from .counting import Skeleton

LAYER_SLOTS = ("attention", "position", "ffn", "norm")
DEFAULTS = {"attention": "mha", "position": "rope", "ffn": "swiglu", "norm": "rmsnorm", "cross_attention": "mha"}
KIND_OF = {"cross_attention": "attention"}
"""The kind of a slot that is not called like it."""
SHORTHANDS = {"activation": "ffn", "rotary_pct": "position", "pre_norm": "norm_placement"}
WIDEST, DEEPEST, MOST_TOKENS = 2**20, 10_000, 2**31 - 1
"""Bounds that no model comes near and that keep sizes, and their products, within what a tensor's shape can say."""
UNNAMED = ComponentSpec(name="")
"""Stands for a slot's default until validation has put it there."""

_SHARE = TypeAdapter(Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)])


class LayerSpec(BaseModel):
    """Some equal layers of a pattern; a slot that is left out is the model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repeat: int = Field(default=1, ge=1, description="how many such layers follow each other")
    attention: ComponentSpec | None = None
    position: ComponentSpec | None = None
    ffn: ComponentSpec | None = None
    norm: ComponentSpec | None = None


class TransformerConfig(BaseModel):
    """The spec of a model. Sizes are in units of vector elements, lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(default=8192, ge=1, le=MOST_TOKENS, description="entries of the token embedding")
    d_model: int = Field(default=256, ge=1, le=WIDEST, description="width of the residual stream")
    n_heads: int = Field(default=4, ge=1, le=WIDEST, description="attention heads")
    n_layers: int = Field(default=4, ge=1, le=DEEPEST, description="blocks")
    d_ff: int = Field(default=0, ge=0, le=4 * WIDEST, description="width inside the feed-forward; 0: 4 x d_model")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the embedding and on each residual branch")
    max_seq_len: int = Field(default=256, ge=1, le=MOST_TOKENS, description="longest sequence")
    causal: bool = Field(default=False, description="no token sees a later one (a decoder)")
    norm_placement: Literal["pre", "post", "sandwich"] = Field(
        default="pre", description="normalise before each branch (pre), after each sum (post), or before and after each "
                                   "branch (sandwich)")
    parallel: bool = Field(default=False, description="attention and feed-forward on one residual branch, side by side")
    attention: ComponentSpec = Field(default=UNNAMED, description="how tokens look at each other")
    position: ComponentSpec = Field(default=UNNAMED, description="how tokens know where they are")
    ffn: ComponentSpec = Field(default=UNNAMED, description="what is done to each position")
    norm: ComponentSpec = Field(default=UNNAMED, description="how activations are kept to scale")
    head: ComponentSpec = Field(default=UNNAMED, description="what is read from hidden states")
    layers: tuple[LayerSpec, ...] = Field(default=(), description="a pattern of layers that differ; empty: all alike")
    input_dim: int | None = Field(default=None, ge=1, le=MOST_TOKENS, description="width of feature inputs, instead of tokens")
    output_dim: int | None = Field(default=None, ge=1, le=MOST_TOKENS, description="width of the outputs; none: vocab_size")
    cross_attention: ComponentSpec = Field(default=UNNAMED, description="how a decoder looks at its source (seq2seq)")
    share_embeddings: bool = Field(default=True, description="one token table for source and target (seq2seq)")
    bos_id: int = Field(default=1, ge=0, description="token that a generated target starts from (seq2seq)")
    eos_id: int | None = Field(default=None, ge=0, description="token that ends a generated text; none: nothing does")
    activation_checkpointing: bool = Field(default=False, description="recompute blocks in backward to save memory")

    if TYPE_CHECKING:  # a component may be given by name, and a shorthand for what it stands for
        def __init__(self, **fields: Any) -> None: ...

    @model_validator(mode="wrap")
    @classmethod
    def _explicit(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        """Expand shorthands, look up every name, then fill in and check options."""
        if isinstance(value, cls):
            return handler(value)
        if not isinstance(value, Mapping):
            raise SpecError(f"a model config is a mapping of fields; found {value!r:.80}")
        fields = _expanded(dict(value))
        _find_names(fields)
        try:
            config = handler(_resolved(fields))
        except ValidationError as error:
            raise SpecError(explain(error, "", [*cls.model_fields, *SHORTHANDS])) from None
        config._check()
        return config

    def layer_specs(self) -> list[LayerSpec]:
        """One spec for each of the `n_layers` layers, every slot filled."""
        defaults = {slot: getattr(self, slot) for slot in LAYER_SLOTS}
        pattern = self.layers or (LayerSpec(repeat=self.n_layers),)
        return [LayerSpec(**{slot: getattr(layer, slot) or defaults[slot] for slot in LAYER_SLOTS})
                for layer in pattern for _ in range(layer.repeat)]

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return self.output_dim or self.vocab_size

    def position_sizes(self, position: ComponentSpec, mixer: Attention | None = None) -> tuple[int, int, int]:
        """The sizes of the position encoding that serves `mixer`, whose rotated heads may have a width of their own."""
        encoding: Any = current_registry().load("position", position.name)
        width = None if mixer is None or "rotate" not in encoding.hooks() else mixer.rotary_width
        return self.d_model if width is None else width * self.n_heads, self.n_heads, self.max_seq_len

    def with_fields(self, **fields: Any) -> TransformerConfig:
        """The same config with some fields changed, validated again; a shorthand replaces what it is short for."""
        kept = self.model_dump(mode="json", exclude={slot for name, slot in SHORTHANDS.items() if name in fields})
        return TransformerConfig.model_validate({**kept, **fields})

    def skeleton(self, assembly: str = "transformer") -> Skeleton:
        """The model without storage, to count what it costs: `transformer`, or of the same parts `seq2seq`."""
        from .counting import Skeleton  # needs torch, as a config by itself does not

        return Skeleton(self, assembly)

    def parameter_count(self, assembly: str = "transformer") -> int:
        """See `Skeleton.parameter_count`."""
        return self.skeleton(assembly).parameter_count()

    def flops_per_token(self, length: int, source_length: int = 0, assembly: str = "transformer") -> int:
        """See `Skeleton.flops_per_token`."""
        return self.skeleton(assembly).flops_per_token(length, source_length)

    def state_bytes(self, batch: int, length: int, source_length: int = 0, assembly: str = "transformer") -> int:
        """See `Skeleton.state_bytes`."""
        return self.skeleton(assembly).state_bytes(batch, length, source_length)

    def _check(self) -> None:
        """Traits that must fit each other, and constructors that must accept their sizes."""
        import torch

        from miniformer.kernel.interfaces import Attention, FeedForward, Head, Norm, PositionEncoding

        registry = current_registry()
        with torch.device("meta"):
            for layer in unique(self.layer_specs()):
                assert layer.attention and layer.position and layer.ffn and layer.norm
                build(FeedForward, layer.ffn, self.d_model, self.d_ff)
                build(Norm, layer.norm, self.d_model)
                mixer = build(Attention, layer.attention, self.d_model, self.n_heads)
                encoding = build(PositionEncoding, layer.position, *self.position_sizes(layer.position, mixer))
                self._check_pair(mixer, encoding, layer)
            build(Head, self.head, self.d_model, self.n_outputs)
        if self.input_dim is not None and self.output_dim is None:
            raise SpecError("input_dim: feature inputs have no vocabulary to predict; give output_dim")
        if not registry.load("attention", self.cross_attention.name).cross:  # type: ignore[attr-defined]
            raise SpecError(f"cross_attention: attention {self.cross_attention.name!r} cannot look at another sequence; one "
                            "that can has `cross`, such as 'mha'")
        for layer in self.layers:
            if layer.position is None or layer.position == self.position:
                continue
            encoding_class: Any = registry.load("position", layer.position.name)
            if "embed" in encoding_class.hooks():
                raise SpecError(f"layers: position {layer.position.name!r} works on the embedding, so it can only be "
                                "the whole model's")

    def _check_pair(self, mixer: Attention, encoding: PositionEncoding, layer: LayerSpec) -> None:
        assert layer.attention and layer.position
        if mixer.causal_only and not self.causal:
            raise SpecError(f"attention {layer.attention.name!r} only looks back, so it cannot serve a model in which "
                            "tokens see later ones (causal: false)")
        if lost := encoding.hooks() - mixer.applies - {"embed"}:
            raise SpecError(f"position {layer.position.name!r} needs {' and '.join(sorted(lost))}, which attention "
                            f"{layer.attention.name!r} does not apply")
        if encoding.learns_bias and not mixer.trains_bias:
            kernel = layer.attention.options.get("kernel")
            raise SpecError(f"position {layer.position.name!r} learns a bias, to which attention {layer.attention.name!r}"
                            f"{f' with kernel {kernel!r}' if kernel else ''} gives no gradient")


def unique(specs: list[LayerSpec]) -> list[LayerSpec]:
    """The different ones among `specs`, in order."""
    return list({json.dumps(spec.model_dump(), sort_keys=True): spec for spec in specs}.values())


def _expanded(fields: dict[str, Any]) -> dict[str, Any]:
    """Shorthands replaced by what they stand for, and defaults that hang on other fields filled in."""
    activation = fields.pop("activation", None)
    if activation is not None:
        if not isinstance(activation, str):
            raise SpecError(f"activation: expected the name of a feed-forward; found {activation!r:.80}")
        if _name(fields.get("ffn") or activation) != activation:
            raise SpecError(f"activation={activation!r} is short for ffn={activation!r}, and ffn is "
                            f"{_name(fields['ffn'])!r}; give one of them")
        fields["ffn"] = fields.get("ffn") or activation
    pct = fields.pop("rotary_pct", None)
    if pct is not None:
        try:
            _SHARE.validate_python(pct)
        except ValidationError as error:
            raise SpecError(explain(error, "rotary_pct", [])) from None
        # as in the configurations that have this field: without rotation, positions are added to the embedding
        meant = {"name": "rope", "pct": pct} if pct else {"name": "sinusoidal"}
        given = fields.get("position") or meant["name"]
        options = ComponentSpec.model_validate(given).options if _name(given) == meant["name"] else None
        if options is None or options.get("pct", pct) != pct:
            raise SpecError(f"rotary_pct={pct!r} is short for position={meant}, and position is {given!r}; "
                            "give one of them")
        fields["position"] = {**options, **meant}
    pre_norm = fields.pop("pre_norm", None)
    if pre_norm is not None:
        if not isinstance(pre_norm, bool):
            raise SpecError(f"pre_norm: expected true or false; found {pre_norm!r:.80}")
        placement = "pre" if pre_norm else "post"
        if fields.setdefault("norm_placement", placement) != placement:
            raise SpecError(f"pre_norm={pre_norm} is short for norm_placement={placement!r}, and norm_placement is "
                            f"{fields['norm_placement']!r}; give one of them")
    if layers := fields.get("layers"):
        if not isinstance(layers, (list, tuple)) or not all(isinstance(one, (Mapping, LayerSpec)) for one in layers):
            raise SpecError(f"layers: expected a list of mappings such as {{repeat: 2, attention: mha}}; found {layers!r:.80}")
        layers = [dict(one) for one in layers]
        for i, one in enumerate(layers):
            if not isinstance(one.get("repeat", 1), int) or one.get("repeat", 1) < 1:
                raise SpecError(f"layers.{i}.repeat: expected a whole number from 1 on; found {one['repeat']!r:.80}")
        total = sum(one.get("repeat", 1) for one in layers)
        if fields.setdefault("n_layers", total) != total:
            raise SpecError(f"n_layers is {fields['n_layers']}, but the pattern in layers has {total}")
        fields["layers"] = layers
    if not fields.get("d_ff"):
        with suppress(TypeError, ValueError):  # a width that is no number is told as that
            fields["d_ff"] = 4 * min(max(0, int(fields.get("d_model", 256))), WIDEST)
    if fields.get("head") is None:
        fields["head"] = "lm" if fields.get("output_dim") is None else "classification"
    return fields


def _find_names(fields: dict[str, Any]) -> None:
    """Look up every name, so that a typo is told before anything is imported."""
    registry = current_registry()
    for slot in (*DEFAULTS, "head"):
        for value in [fields.get(slot), *(one.get(slot) for one in fields.get("layers") or ())]:
            if value is not None and isinstance(_name(value), str):
                registry.find(KIND_OF.get(slot, slot), _name(value))


def _resolved(fields: dict[str, Any]) -> dict[str, Any]:
    """Component slots in their explicit form."""
    fields = {**fields, **_slots(fields)}
    for slot, default in DEFAULTS.items():
        fields[slot] = resolve(KIND_OF.get(slot, slot), fields.get(slot) or default)
    fields["head"] = resolve("head", fields["head"])
    if fields.get("layers"):
        fields["layers"] = [{**one, **{kind: resolve(kind, value) for kind, value in _slots(one).items()}}
                            for one in fields["layers"]]
    return fields


def _slots(fields: dict[str, Any]) -> dict[str, Any]:
    """The slots that are given, with components that are shorthands replaced by what they stand for."""
    registry = current_registry()
    slots = {kind: fields[kind] for kind in LAYER_SLOTS if fields.get(kind) is not None}
    for kind, value in list(slots.items()):
        if isinstance(_name(value), str):
            meaning = getattr(registry.load(kind, _name(value)), "shorthand_for", None)
            for slot, meant in (meaning or {}).items():
                spec = ComponentSpec.model_validate(meant)
                if slot == kind:
                    given = ComponentSpec.model_validate(value).options
                    slots[kind] = ComponentSpec(name=spec.name, options={**spec.options, **given})
                else:
                    slots.setdefault(slot, spec)
    return slots


def _name(value: Any) -> Any:
    """The name in a spec of any form."""
    return value.name if isinstance(value, ComponentSpec) else value.get("name") if isinstance(value, Mapping) else value
