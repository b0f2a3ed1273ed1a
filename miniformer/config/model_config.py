"""`TransformerConfig`: what a model is made of, as frozen data from which the model is built.

Building one takes four steps. Shorthands such as `activation="swiglu"` are replaced by the explicit form, which is also
what is saved. Every component name is looked up, before anything is imported. Options are checked against the constructors.
Then every component is constructed once on the meta device, where tensors have no storage, so a model that cannot be built
is refused before memory is spent on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from miniformer.kernel.errors import SpecError
from miniformer.kernel.options import explain, refuse_truth_values
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec, build, resolve

from .layer_pattern import LayerSpec, pattern_of, unique
from .shorthands import SHORTHANDS, expand_components, expand_fields, refuse_blanks
from .slots import LAYER_SLOTS, MODEL_SLOTS, SLOTS, find_components

if TYPE_CHECKING:
    from torch import Tensor

    from miniformer.kernel.interfaces import Attention, PositionEncoding

    from .counting import Skeleton

__all__ = ["LayerSpec", "TransformerConfig"]

WIDEST, DEEPEST, MOST_TOKENS = 2**20, 10_000, 2**31 - 1
"""Bounds that no model comes near. They keep sizes, and products of sizes, within what a tensor's shape can hold."""
UNNAMED = ComponentSpec(name="")
"""Stands for a slot's default until validation has put it there."""


class TransformerConfig(BaseModel):
    """The spec of a model. Sizes are in units of vector elements, lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    vocab_size: int = Field(default=8192, ge=1, le=MOST_TOKENS, description="number of tokens in the vocabulary")
    d_model: int = Field(default=256, ge=1, le=WIDEST, description="width of the hidden states")
    n_heads: int = Field(default=4, ge=1, le=WIDEST, description="attention heads in each layer")
    n_layers: int = Field(default=4, ge=1, le=DEEPEST, description="number of layers")
    d_ff: int = Field(default=0, ge=0, le=4 * WIDEST, description="width inside the feed-forward; 0 means 4 x d_model")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the embedding and on each residual branch")
    max_seq_len: int = Field(default=256, ge=1, le=MOST_TOKENS, description="longest sequence, in tokens")
    causal: bool = Field(default=False, description="a token sees itself and earlier ones only, as in a decoder")
    norm_placement: Literal["pre", "post", "sandwich"] = Field(
        default="pre", description="normalise before each branch (pre), after each sum (post), or before and after each "
                                   "branch (sandwich)")
    parallel: bool = Field(default=False, description="attention and feed-forward read the same input, side by side on one "
                                                      "residual branch")
    attention: ComponentSpec = Field(default=UNNAMED, description="how tokens look at each other")
    position: ComponentSpec = Field(default=UNNAMED, description="how the order of tokens is represented")
    ffn: ComponentSpec = Field(default=UNNAMED, description="feed-forward network that is applied to each token")
    norm: ComponentSpec = Field(default=UNNAMED, description="how hidden states are normalised")
    head: ComponentSpec = Field(default=UNNAMED, description="how outputs are computed from hidden states; without one, as "
                                                             "the task needs")
    layers: tuple[LayerSpec, ...] = Field(default=(), description="layers with components of their own, first to last; "
                                                                  "empty: all are alike")
    input_dim: int | None = Field(default=None, ge=1, le=MOST_TOKENS, description="numbers in each step of a feature input; "
                                                                                  "none: inputs are tokens")
    output_dim: int | None = Field(default=None, ge=1, le=MOST_TOKENS, description="numbers in each output; none: vocab_size")
    cross_attention: ComponentSpec = Field(default=UNNAMED, description="how a decoder looks at its source (seq2seq)")
    share_embeddings: bool = Field(default=True, description="source and target share one token embedding (seq2seq)")
    bos_id: int = Field(default=1, ge=0, le=MOST_TOKENS, description="token that a generated target starts from (seq2seq)")
    eos_id: int | None = Field(default=None, ge=0, le=MOST_TOKENS, description="token that ends a generated text; none: only "
                                                                               "its length limit ends it")
    activation_checkpointing: bool = Field(default=False, description="recompute blocks in the backward pass, to save memory")

    _least_numbers: tuple[int, int] = PrivateAttr(default=(0, 0))
    """Least numbers of the weights outside of layers, and in one stack of them."""

    if TYPE_CHECKING:  # a component may be given by name, and a shorthand in place of the field that it stands for
        def __init__(self, **fields: Any) -> None: ...

    _numbers_are_numbers = field_validator("*", mode="before")(refuse_truth_values)

    @model_validator(mode="wrap")
    @classmethod
    def _explicit(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        """Expand shorthands, look up every name, fill in and check options, then try the constructors."""
        if isinstance(value, cls):
            return handler(value)
        if not isinstance(value, Mapping):
            raise SpecError(f"a model config is a mapping of fields; found {value!r:.80}")
        fields = with_names_found(value)
        try:
            config = handler(_resolved(fields))
        except ValidationError as error:
            raise SpecError(explain(error, "", [*cls.model_fields, *SHORTHANDS])) from None
        config._check()
        return config

    def layer_specs(self) -> list[LayerSpec]:
        """One spec for each of the `n_layers` layers, with every slot filled."""
        return [layer for layer, repeat in self._patterned() for _ in range(repeat)]

    def _patterned(self) -> list[tuple[LayerSpec, int]]:
        """The entries of the pattern with every slot filled, and how many such layers follow each other."""
        pattern = self.layers or (LayerSpec(repeat=self.n_layers),)
        return [(LayerSpec(**{slot: getattr(entry, slot) or getattr(self, slot) for slot in LAYER_SLOTS}), entry.repeat)
                for entry in pattern]

    @property
    def n_outputs(self) -> int:
        """Width of the head's outputs."""
        return self.output_dim or self.vocab_size

    def position_sizes(self, position: ComponentSpec, mixer: Attention | None = None) -> tuple[int, int, int]:
        """The sizes (d_model, n_heads, max_seq_len) with which the position encoding of attention `mixer` is built.

        Where the encoding rotates heads and `mixer` has heads of a width of its own rotated (`rotary_width`), the first size
        is the one that gives heads of that width.
        """
        encoding: Any = current_registry().load("position", position.name)
        width = None if mixer is None or "rotate" not in encoding.hooks() else mixer.rotary_width
        return self.d_model if width is None else width * self.n_heads, self.n_heads, self.max_seq_len

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """The fields that are not as they are by default."""
        return self.model_dump(mode="json", exclude_defaults=True).items()

    def with_fields(self, **fields: Any) -> TransformerConfig:
        """A copy with some fields changed, validated again; a shorthand replaces the field that it stands for."""
        replaced = {shorthand.field for name, shorthand in SHORTHANDS.items() if name in fields}
        return TransformerConfig.model_validate({**self.model_dump(mode="json", exclude=replaced), **fields})

    def skeleton(self, assembly: str = "transformer") -> Skeleton:
        """The model without storage, to count what it costs; assembly `seq2seq` makes an encoder-decoder of the same parts."""
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

    def least_numbers(self, stacks: int = 1) -> int:
        """Numbers that the weights of a model have at least, known since its parts were tried.

        Norms and a cross-attention are counted once or not at all, so a model has a few more (`parameter_count`).

        Args:
            stacks: of layers; an encoder-decoder has two.
        """
        outside, in_layers = self._least_numbers
        return outside + stacks * in_layers

    def _check(self) -> None:
        """Refuse components that cannot be built at these sizes, or that do not fit each other."""
        self._check_constructors()
        if self.input_dim is not None and self.output_dim is None:
            raise SpecError("input_dim: feature inputs have no vocabulary to predict; give output_dim")
        registry = current_registry()
        if not registry.load("attention", self.cross_attention.name).cross:  # type: ignore[attr-defined]
            raise SpecError(f"cross_attention: attention {self.cross_attention.name!r} cannot look at another sequence; one "
                            "that can has `cross`, such as 'mha'")
        for layer in self.layers:
            if layer.position is None or layer.position == self.position:
                continue
            encoding: Any = registry.load("position", layer.position.name)
            if "embed" in encoding.hooks():
                raise SpecError(f"layers: position {layer.position.name!r} works on the embedding, so it can only be "
                                "the whole model's")

    def _check_constructors(self) -> None:
        import torch
        from torch import nn

        from miniformer.kernel.interfaces import Attention, FeedForward, Head, Norm, PositionEncoding

        with torch.device("meta"):
            in_layers, encodings = 0, []
            for layer, repeat in unique(self._patterned()):
                assert layer.attention and layer.position and layer.ffn and layer.norm
                ffn = build(FeedForward, layer.ffn, self.d_model, self.d_ff)
                norm = build(Norm, layer.norm, self.d_model)
                mixer = build(Attention, layer.attention, self.d_model, self.n_heads)
                encoding = build(PositionEncoding, layer.position, *self.position_sizes(layer.position, mixer))
                self._check_pair(mixer, encoding, layer)
                in_layers += repeat * _numbers(*(p for part in (ffn, norm, mixer) for p in part.parameters()))
                encodings.append(_numbers(*encoding.parameters()))
            head = build(Head, self.head, self.d_model, self.n_outputs)
            table = nn.Parameter(torch.empty(self.input_dim or self.vocab_size, self.d_model))
            if self.input_dim is None:
                head.tie(table)
        # layers that have one encoding share it, so only one of all is sure to be there
        self._least_numbers = (_numbers(table, *head.parameters()) + max(encodings), in_layers)

    def _check_pair(self, mixer: Attention, encoding: PositionEncoding, layer: LayerSpec) -> None:
        assert layer.attention and layer.position
        if mixer.causal_only and not self.causal:
            raise SpecError(f"attention {layer.attention.name!r} only looks back, so it cannot serve a model in which "
                            "tokens see later ones (causal: false)")
        # an encoding of the embedding has done its work before the first layer, so no attention has to apply it
        if lost := encoding.hooks() - mixer.applies - {"embed"}:
            raise SpecError(f"position {layer.position.name!r} needs {' and '.join(sorted(lost))}, which attention "
                            f"{layer.attention.name!r} does not apply")
        if encoding.learns_bias and not mixer.trains_bias:
            kernel = layer.attention.options.get("kernel")
            raise SpecError(f"position {layer.position.name!r} learns a bias, to which attention {layer.attention.name!r}"
                            f"{f' with kernel {kernel!r}' if kernel else ''} gives no gradient")


def _numbers(*parameters: Tensor) -> int:
    """How many numbers parameters hold, in units of the default float type; a parameter that is there twice counts once."""
    import torch

    sizes = {id(parameter): parameter.numel() * parameter.element_size() for parameter in parameters}
    return sum(sizes.values()) // torch.get_default_dtype().itemsize


def with_names_found(value: Mapping[str, Any]) -> dict[str, Any]:
    """A model's fields with shorthands expanded, after every component was looked up by its name. Imports no component.

    Raises:
        UserError: a name is unknown, a shorthand contradicts the field that it stands for, or `layers` makes no sense.
    """
    fields = dict(value)
    refuse_blanks(fields)
    expand_fields(fields)
    _fill_in(fields)
    for layer in (fields, *(fields.get("layers") or ())):
        find_components(MODEL_SLOTS, layer)
    return fields


def check_values(fields: Mapping[str, Any], where: str) -> None:
    """Refuse numbers and words that a model cannot have. Imports no component, so a mistake is an error at once.

    Raises:
        SpecError: with the path of the field, which begins with `where`, what was found and what was expected.
    """
    for name, value in fields.items():
        field = TransformerConfig.model_fields.get(name)
        if field is None or name in (*MODEL_SLOTS, "layers"):
            continue
        expected: Any = Annotated[field.annotation, field]
        try:
            read = TypeAdapter(expected).validate_python(value)
        except ValidationError as error:
            raise SpecError(explain(error, f"{where}.{name}", [])) from None
        if isinstance(value, bool) and not isinstance(read, bool):
            raise SpecError(f"{where}.{name}: expected a number, not true or false; found {value}")


def _fill_in(fields: dict[str, Any]) -> None:
    """Fill in, in place, the fields whose defaults depend on other fields."""
    if layers := fields.get("layers"):
        fields["layers"] = pattern = pattern_of(layers)
        total = sum(entry.get("repeat", 1) for entry in pattern)
        if fields.setdefault("n_layers", total) != total:
            raise SpecError(f"n_layers is {fields['n_layers']}, but the pattern in layers has {total}")
    d_ff = fields.get("d_ff")
    if d_ff is None or (d_ff in (0, "0") and d_ff is not False):
        with suppress(TypeError, ValueError, OverflowError):  # a d_model that is no number is refused later, with its own error
            fields["d_ff"] = 4 * min(max(0, int(fields.get("d_model", 256))), WIDEST)
    if fields.get("head") is None:
        fields["head"] = "lm" if fields.get("output_dim") is None else "classification"


def _resolved(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with every slot in explicit form: the saved name, and all options filled in and checked."""
    fields = {**fields, **expand_components(fields)}
    for slot in MODEL_SLOTS:
        fields[slot] = resolve(SLOTS[slot].kind, SLOTS[slot].default if fields.get(slot) is None else fields[slot],
                               slot)
    layers = []
    for entry in fields.get("layers") or ():
        own = {slot: resolve(SLOTS[slot].kind, value) for slot, value in expand_components(entry).items()}
        layers.append({**entry, **own})
    if layers:
        fields["layers"] = layers
    return fields
