"""Generation of tokens, step by step through the model's state, or over by recomputing everything as an oracle."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from miniformer.kernel.errors import StateError, UserError
from miniformer.kernel.interfaces import Head
from miniformer.model.state import DecodingState
from miniformer.model.transformer import Transformer


def generate(model: Transformer, prompt: Tensor, max_new_tokens: int, *, temperature: float = 1.0, top_k: int = 0,
             top_p: float = 1.0, seed: int | None = None, eos_id: int | None = None, use_state: bool = True) -> Tensor:
    """The tokens `[T + N]` of `prompt` `[T]` and up to `max_new_tokens` that follow it; see `stream`."""
    new = list(stream(model, prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                      eos_id=eos_id, use_state=use_state))
    return torch.cat([prompt, prompt.new_tensor(new)])


@torch.inference_mode()
def stream(model: Transformer, prompt: Tensor, max_new_tokens: int, *, temperature: float = 1.0, top_k: int = 0,
           top_p: float = 1.0, seed: int | None = None, eos_id: int | None = None, use_state: bool = True) -> Iterator[int]:
    """The tokens that follow `prompt` `[T]`, one by one, until `eos_id`, which is not among them.

    Args:
        model: a causal model, in eval mode unless its dropout is wanted.
        prompt: at least one token.
        max_new_tokens: at most so many.
        temperature: logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: only so many of the likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together have this probability (Holtzman 2020, arXiv:1904.09751).
        seed: of the draws.
        eos_id: the token that ends a text.
        use_state: keep what the layers remember between steps. Without it, or where an attention has no state, every step
            computes everything again.

    Raises:
        UserError: settings out of range, an empty prompt, or a model that is not causal.
    """
    if not model.config.causal:
        raise UserError("this model sees later tokens (causal: false), so it cannot generate")
    if prompt.ndim != 1 or len(prompt) == 0:
        raise UserError(f"a prompt is at least one token; found a tensor of shape {list(prompt.shape)}")
    if not (max_new_tokens >= 0 and temperature >= 0 and top_k >= 0 and 0 <= top_p <= 1):
        raise UserError(f"max_new_tokens, temperature and top_k are not negative and top_p is from 0 to 1; found "
                        f"{max_new_tokens}, {temperature}, {top_k}, {top_p}")
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    device = next(model.parameters()).device
    seen = len(prompt) + max(0, max_new_tokens - 1)  # nothing looks at the last one
    state = _state(model, seen) if use_state else None
    tokens = prompt.to(device)[None]
    unseen = tokens
    for _ in range(max_new_tokens):
        logits = model(tokens if state is None else unseen, state=state, readout=_last)[0]
        token = choose(logits.float().cpu(), temperature, top_k, top_p, generator)
        if token == eos_id:
            return
        yield token
        unseen = torch.tensor([[token]], device=device)
        tokens = torch.cat([tokens, unseen], dim=1)


def _state(model: Transformer, capacity: int) -> DecodingState | None:
    try:
        return model.init_state(1, capacity)
    except StateError:
        return None


def _last(hidden: Tensor, head: Head) -> Tensor:
    logits: Tensor = head(hidden[:, -1:])[:, 0]  # [B, 1, V] -> [B, V]
    return logits


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> int:
    """A token from logits `[V]`: the likeliest, or a draw from those that are kept."""
    if temperature == 0:
        return int(logits.argmax())
    logits = (logits - logits.max()).double() / temperature  # at most 0, so that no small temperature overflows
    if top_k:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        beyond[0] = False  # the first is always kept
        probabilities[order[beyond]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))
