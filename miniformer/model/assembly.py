"""What the assemblies of blocks have in common beside the interface: they are saved and loaded by themselves, and generate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from miniformer.checkpoint.provenance import migrating
from miniformer.checkpoint.store import SavedModel, read_model, restore, write_model
from miniformer.config.model_config import TransformerConfig
from miniformer.decoding.arguments import checked_count, checked_seed
from miniformer.decoding.defaults import DEFAULTS
from miniformer.decoding.loop import Feed, decode, start_texts
from miniformer.decoding.sampling import Sampling
from miniformer.decoding.state import ModelState
from miniformer.kernel import assembly as kernel
from miniformer.kernel.context import Context
from miniformer.kernel.errors import SpecError, StateError, UserError
from miniformer.kernel.layout import Layout

from .block import Stack


class Assembly(kernel.Assembly):
    """An assembly of blocks, which is saved and loaded by itself and may generate.

    Class data:
        assembly: the name that it is registered by.
    """

    assembly: ClassVar[str]

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.config: TransformerConfig = config

    @abstractmethod
    def feed(self, input_ids: Tensor, max_new_tokens: int, *, layout: Layout | None = None, use_state: bool = True,
             bos_id: int | None = None) -> Feed:
        """What generation from `input_ids` `[B, T]` feeds; see `generate`."""

    @cached_property
    def endless(self) -> bool:
        """Whether it takes sequences longer than `max_seq_len`."""
        stacks = [module for module in self.modules() if isinstance(module, Stack)]
        return all(encoding.extrapolates for stack in stacks for encoding in stack.encodings)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int = DEFAULTS.max_new_tokens, *,
                 temperature: float = DEFAULTS.temperature, top_k: int = DEFAULTS.top_k, top_p: float = DEFAULTS.top_p,
                 do_sample: bool = True, repetition_penalty: float = DEFAULTS.repetition_penalty, eos_id: int | None = None,
                 bos_id: int | None = None, seed: int | None = None, layout: Layout | None = None,
                 use_state: bool = True) -> Tensor:
        """Continuations of prompts, `[B, T + N]` with the prompts; of an encoder-decoder its answers alone, `[B, N]`.

        A model in training mode writes without dropout all the same, and is in training mode again afterwards.

        Args:
            input_ids: `[B, T]` prompts, or of an encoder-decoder the sources, `[B, S, F]` where the config has `input_dim`.
            max_new_tokens: at most so many.
            temperature, top_k, top_p, repetition_penalty: see `Sampling`.
            do_sample: draw; otherwise take the likeliest token each time (greedy).
            eos_id: the token that ends a text; rows that ended are filled with it. None: the config's; -1: none.
            bos_id: the token that an encoder-decoder's answer starts from, which is no part of it; None: the config's.
            seed: of the draws; row b draws with seed + b, as it would alone.
            layout: where the tokens of `input_ids` sit, for rows of different lengths, padded on either side.
            use_state: keep what the layers remember between steps. Without it, or where an attention has no state, every
                step computes everything again.

        Raises:
            UserError: settings out of range or of the wrong type, an empty prompt, tokens that the vocabulary has not, or a
                model that cannot write.
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
        """Write `config.json` and `model.safetensors` to a folder, whole or not at all."""
        write_model(Path(folder), self.state_dict(), {"assembly": self.assembly, "model": self.config.model_dump(mode="json")})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model that a folder holds, or the best one of a run folder, in eval mode.

        Raises:
            UserError: no model is there, it is of another assembly or damaged, or a component of it is not installed.
        """
        return cls.from_saved(read_model(Path(folder)))

    @classmethod
    def from_saved(cls, saved: SavedModel) -> Self:
        """The model of a folder that was read."""
        if (found := saved.config.get("assembly", cls.assembly)) != cls.assembly:
            from .assemblies import assembly_of

            raise UserError(f"{saved.folder}: this model is a {found}; load it with {assembly_of(found).__name__}, not with "
                            f"{cls.__name__}")
        with migrating(saved.config):
            model = cls(TransformerConfig.model_validate(saved.config["model"]))
            restore(model, saved)
        return model.eval()

    def _context(self, inputs: Tensor, context: Context | None, state: ModelState | None, stack: Stack,
                 causal: bool) -> Context:
        """The caller's context, completed with what only the model knows."""
        if state is not None and context is None and state.layout is not None:
            follow = state.layout.next_position()
            steps = torch.arange(inputs.shape[1], device=inputs.device)
            context = Context(replace(follow, positions=follow.positions + steps,
                                      documents=follow.documents.expand(-1, inputs.shape[1])))
        elif context is None:
            context = Context.plain(inputs)
        self._check_length(inputs.shape[1] + (0 if state is None else state.length), stack)
        keys = context.layout if state is None else state.extend(context.layout)
        # masks are made anew: they belong to one forward, and a compiled graph cannot hand rules back to its caller
        return replace(context, causal=causal, keys=keys, masks={})

    def _check_length(self, length: int, stack: Stack) -> None:
        if length > self.config.max_seq_len:
            for encoding in stack.encodings:
                if not encoding.extrapolates:
                    raise SpecError(f"{length} tokens: position {self.config.position.name!r} ends at max_seq_len = "
                                    f"{self.config.max_seq_len}")

    def _check_prompts(self, input_ids: Tensor) -> None:
        """Refuse what is no batch of prompts, token ids or of a model that reads features those."""
        width, found = self.config.input_dim, getattr(input_ids, "shape", type(input_ids).__name__)
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 + (width is not None) or 0 in input_ids.shape:
            given = f"a tensor of shape {list(found)}" if isinstance(input_ids, Tensor) else found
            raise UserError(f"a prompt is at least one token, and prompts are [B, T]; found {given}" if width is None else
                            f"this model reads features, so sources are [B, S, {width}]; found {given}")
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
        """The layout of prompts, which are checked."""
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


_held: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, for everyone who needs it so at a time; what was in training mode is so again afterwards."""
    with _lock:
        needed = model.training or model in _held
        if needed:
            users, trained = _held.get(model) or (0, [module for module in model.modules() if module.training])
            _held[model] = users + 1, trained
            model.eval()
    try:
        yield
    finally:
        with _lock:
            if needed:
                users, trained = _held.pop(model)
                if users > 1:
                    _held[model] = users - 1, trained
                else:
                    for module in trained:
                        module.training = True


def state_or_none(make: Callable[[], ModelState], use_state: bool) -> ModelState | None:
    """The state, where one is wanted and every layer can keep one."""
    try:
        return make() if use_state else None
    except StateError:
        return None
