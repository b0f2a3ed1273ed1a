"""The decoding loop by itself, for one prompt of tokens: as they come, or all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miniformer.decoding.loop import decode, start_texts
from miniformer.decoding.sampling import Sampling
from miniformer.model.assembly import BlockAssembly


def generate(model: BlockAssembly, prompt: Tensor, max_new_tokens: int, **settings: Any) -> Tensor:
    """The tokens `[T + N]` of `prompt` `[T]` and up to `max_new_tokens` that follow it; see `stream`.

    Of an encoder-decoder, whose answer does not go on from its source, the N new ones alone.
    """
    new = prompt.new_tensor(list(stream(model, prompt, max_new_tokens, **settings)))
    return new if model.has_source else torch.cat([prompt, new])


@torch.inference_mode()
def stream(model: BlockAssembly, prompt: Tensor, max_new_tokens: int, *, temperature: float = 1.0, top_k: int = 0,
           top_p: float = 1.0, repetition_penalty: float = 1.0, seed: int | None = None, eos_id: int | None = None,
           use_state: bool = True) -> Iterator[int]:
    """The tokens that follow `prompt` `[T]`, one by one, until `eos_id`, which is not among them.

    Args:
        model: a causal model, which goes on from the prompt, or an encoder-decoder, which answers it; in eval mode unless
            its dropout is wanted.
        prompt: at least one token.
        max_new_tokens: at most so many.
        temperature, top_k, top_p, repetition_penalty: see `Sampling`.
        seed: of the draws.
        eos_id: the token that ends a text.
        use_state: keep what the layers remember between steps. Without it, or where an attention has no state, every step
            computes everything again.

    Raises:
        UserError: settings out of range, an empty prompt, or a model that is not causal.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty=repetition_penalty)
    feed = model.feed(prompt[None], max_new_tokens, use_state=use_state)
    rows = start_texts(feed, [max_new_tokens], [seed])
    for [row] in decode(feed, rows, sampling, eos_id):
        if row.finish == "eos":
            return
        yield row.new[-1]
