"""`BlockAssembly`: what whole models made of blocks have in common. They are saved and loaded, and generate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from miniformer.checkpoint.provenance import migrating
from miniformer.checkpoint.store import SavedModel, read_model, restore, write_model
from miniformer.config.memory import check_weights
from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.arguments import checked_count, checked_seed
from miniformer.decoding.defaults import DEFAULTS
from miniformer.decoding.loop import Feed, decode, start_texts
from miniformer.decoding.sampling import Sampling
from miniformer.decoding.state import ROOM, ModelState
from miniformer.kernel import assembly as kernel
from miniformer.kernel.context import Context
from miniformer.kernel.errors import SpecError, StateError, UserError
from miniformer.kernel.layout import Layout
from miniformer.kernel.registry import current_registry
from miniformer.kernel.renamed import old_attributes

from .block import Stack
from .failures import names_component


class BlockAssembly(kernel.Assembly):
    """A whole model made of blocks. It can be trained, saved and loaded, and may generate.

    Class data:
        assembly: the name under which it is registered.
    """

    assembly: ClassVar[str]

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.config: TransformerConfig = config
        check_weights(self.least_numbers(config))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` gives.

        Raises:
            ComponentError: a component of the model failed.
        """
        if torch.compiler.is_compiling():  # a graph that ends inside `try` would not be compiled at all
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            names_component(error, self)
            raise

    @classmethod
    def least_numbers(cls, config: TransformerConfig) -> int:
        """Numbers that the weights have at least, known before there are any; 0: an assembly that does not say."""
        return 0

    @abstractmethod
    def feed(self, input_ids: Tensor, max_new_tokens: int, *, layout: Layout | None = None, use_state: bool = True,
             bos_id: int | None = None) -> Feed:
        """A `Feed` that continues `input_ids` `[B, T]` token by token; for the arguments see `generate`."""

    @cached_property
    def endless(self) -> bool:
        """Whether it takes sequences longer than `max_seq_len`: all its position encodings extrapolate."""
        stacks = [module for module in self.modules() if isinstance(module, Stack)]
        return all(encoding.extrapolates for stack in stacks for encoding in stack.encodings)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int = DEFAULTS.max_new_tokens, *,
                 temperature: float = DEFAULTS.temperature, top_k: int = DEFAULTS.top_k, top_p: float = DEFAULTS.top_p,
                 do_sample: bool = True, repetition_penalty: float = DEFAULTS.repetition_penalty, eos_id: int | None = None,
                 bos_id: int | None = None, seed: int | None = None, layout: Layout | None = None,
                 use_state: bool = True) -> Tensor:
        """Continue prompts: `[B, T + N]`, prompts included; an encoder-decoder gives its answers alone, `[B, N]`.

        The model writes in eval mode, without dropout. If it was in training mode, it is so again afterwards.

        Args:
            input_ids: prompts `[B, T]`; for an encoder-decoder sources `[B, S]`, or `[B, S, F]` if the config has `input_dim`.
            max_new_tokens: the most tokens to write.
            temperature, top_k, top_p, repetition_penalty: see `Sampling`.
            do_sample: draw each token; otherwise take the likeliest (greedy).
            eos_id: the token that ends a text; rows that ended are filled with it. None: the config's; -1: no token does.
            bos_id: the token from which an encoder-decoder's answer starts, not part of the answer; None: the config's.
            seed: of the draws; row b draws with seed + b, as it would alone.
            layout: the positions of `input_ids`, for rows of different lengths, padded on either side.
            use_state: keep keys and values, or whatever the layers remember, between steps. Without it, or where an attention
                has no state, every step computes all tokens again.

        Raises:
            UserError: a setting is out of range or of the wrong type, a prompt is empty or has tokens that are not in the
                vocabulary, or the model cannot write.
        """
        sampling = Sampling(temperature if do_sample else 0.0, top_k, top_p, repetition_penalty=repetition_penalty)
        eos_id = self.config.eos_id if eos_id is None else eos_id  # no token is -1
        max_new_tokens, seed = checked_count("max_new_tokens", max_new_tokens), checked_seed(seed)
        with evaluating(self):
            feed = self.feed(input_ids, max_new_tokens, layout=layout, use_state=use_state, bos_id=bos_id)
            seeds = [None if seed is None else seed + b for b in range(len(input_ids))]
            texts = start_texts(feed, [max_new_tokens] * len(seeds), seeds)
            for _ in decode(feed, texts, sampling, eos_id):
                pass
        longest = max(len(text.new) for text in texts)
        written = torch.tensor([text.new + [eos_id] * (longest - len(text.new)) for text in texts], device=input_ids.device,
                               dtype=torch.long if input_ids.is_floating_point() else input_ids.dtype)
        return written if self.has_source else torch.cat([input_ids, written], dim=1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a folder. If writing fails, the folder is as it was."""
        write_model(Path(folder), self.state_dict(), {"assembly": self.assembly, "model": self.config.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load the model of a folder, or the best model of a run's folder, in eval mode.

        Raises:
            UserError: the folder has no model, the model is damaged or of another assembly, or one of its components is not
                installed.
        """
        return cls.from_saved(read_model(Path(folder)))

    @classmethod
    def from_saved(cls, saved: SavedModel) -> Self:
        """The model, in eval mode, from what was read from a folder."""
        name = saved.config.get("assembly", cls.assembly)
        if name != cls.assembly:
            raise UserError(f"{saved.folder}: this model is a {name}; load it with {assembly_of(name).__name__}, not with "
                            f"{cls.__name__}")
        with migrating(saved.config):
            model = cls(TransformerConfig.model_validate(saved.config["model"]))
            restore(model, saved)
        return model.eval()

    def _context(self, inputs: Tensor, context: Context | None, state: ModelState | None, stack: Stack,
                 causal: bool) -> Context:
        """The context of a forward: the caller's (None: a plain one), with causality, the keys' layout and fresh masks.

        Where a state is given without a context, the tokens follow those that it has seen.
        """
        if state is not None and context is None and state.layout is not None:
            following = state.layout.next_position()
            steps = torch.arange(inputs.shape[1], device=inputs.device)
            context = Context(replace(following, positions=following.positions + steps,
                                      documents=following.documents.expand(-1, inputs.shape[1])))
        elif context is None:
            context = Context.plain(inputs)
        self._check_length(inputs.shape[1] + (0 if state is None else state.length), stack)
        keys = context.layout if state is None else state.extend(context.layout)
        # masks start empty: they belong to one forward, and a compiled graph cannot hand rules back to its caller
        return replace(context, causal=causal, keys=keys, masks={})

    def _growing(self, stack: Stack, make: Callable[[int], ModelState], read: int, capacity: int) -> ModelState:
        """The state that `make` makes for so many columns: with room for few after `read` at first, if it can grow.

        Raises:
            StateError, SpecError: as `make` does.
            UserError: it cannot grow, and there is no memory for all of it.
        """
        self._check_length(capacity, stack)
        state = make(min(capacity, read + ROOM))
        if state.capacity == capacity:
            return state
        if state.can_grow:
            state.limit = capacity
            return state
        size = state.nbytes * capacity // state.capacity
        try:
            return make(capacity)
        except (RuntimeError, MemoryError) as error:
            raise UserError(f"max_new_tokens: a state for {capacity:,} tokens takes some {size / 1e9:,.1f} GB, which cannot be "
                            f"had: {str(error).splitlines()[0]}") from None

    def _check_length(self, length: int, stack: Stack) -> None:
        if length > self.config.max_seq_len:
            for encoding in stack.encodings:
                if not encoding.extrapolates:
                    raise SpecError(f"{length} tokens: position {self.config.position.name!r} ends at max_seq_len = "
                                    f"{self.config.max_seq_len}")

    def _check_prompts(self, input_ids: Tensor) -> None:
        """Refuse what is not a batch of prompts: of token ids, or of features for a model that reads features."""
        width = self.config.input_dim
        dimensions = 2 if width is None else 3
        if not isinstance(input_ids, Tensor) or input_ids.ndim != dimensions or 0 in input_ids.shape:
            is_tensor = isinstance(input_ids, Tensor)
            found = f"a tensor of shape {list(input_ids.shape)}" if is_tensor else type(input_ids).__name__
            if width is None:
                raise UserError(f"a prompt is at least one token, and prompts are [B, T]; found {found}")
            raise UserError(f"this model reads features, so sources are [B, S, {width}]; found {found}")
        if width is None:
            if input_ids.is_floating_point():
                raise UserError(f"prompts are token ids, whole numbers; found {input_ids.dtype}")
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise UserError(f"prompts: expected ids of the {self.config.vocab_size} tokens of the vocabulary; found "
                                f"{low if low < 0 else high}")
        elif input_ids.shape[-1] != width or not input_ids.is_floating_point():
            raise UserError(f"this model reads features, so sources are floats [B, S, {width}]; found {list(input_ids.shape)} "
                            f"of {input_ids.dtype}")
        elif not self.has_source:
            raise UserError("this model reads features and writes tokens, so it cannot go on from what it wrote")

    def _prompt_layout(self, input_ids: Tensor, layout: Layout | None) -> Layout:
        """Check prompts and their layout; None: unpadded rows. Returns the layout, on the model's device."""
        self._check_prompts(input_ids)
        if self.config.n_outputs != self.config.vocab_size:
            raise UserError(f"this model has {self.config.n_outputs} outputs and a vocabulary of {self.config.vocab_size}, so "
                            "it cannot generate")
        device = next(self.parameters()).device
        if layout is None:
            return Layout.full(*input_ids.shape[:2], device=device)
        if layout.packed or layout.shape != input_ids.shape[:2]:
            raise UserError(f"a layout of prompts has one text in each row and their shape {list(input_ids.shape[:2])}; found "
                            f"{'several texts in a row' if layout.packed else list(layout.shape)}")
        return layout.to(device)


def assembly_of(name: str) -> type[BlockAssembly]:
    """The class that is registered as an assembly of that name.

    Raises:
        UserError: none is, or it is not made of blocks.
    """
    cls = current_registry().load("assembly", name)
    if not issubclass(cls, BlockAssembly):
        raise UserError(f"assembly {name!r} can be inspected, but not trained or loaded: it does not subclass "
                        "miniformer.model.assembly.BlockAssembly")
    return cls


_held: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
"""By model: how many evaluate it now, and which of its modules were training before."""
_lock = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode inside, and put the modules that were training back afterwards.

    Several threads may evaluate one model; the last that leaves puts it back.

    Raises:
        ComponentError: a component of the model failed inside: its module, or the state that it keeps.
    """
    with _lock:
        needed = model.training or model in _held
        if needed:
            users, in_training = _held.get(model) or (0, [module for module in model.modules() if module.training])
            _held[model] = users + 1, in_training
            model.eval()
    try:
        yield
    except Exception as error:
        names_component(error, model)
        raise
    finally:
        with _lock:
            if needed:
                users, in_training = _held.pop(model)
                if users > 1:
                    _held[model] = users - 1, in_training
                else:
                    for module in in_training:
                        module.training = True


def state_or_none(make: Callable[[], ModelState], use_state: bool) -> ModelState | None:
    """The state that `make` makes; None where none is wanted, or a layer cannot keep one."""
    try:
        return make() if use_state else None
    except StateError:
        return None


if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
