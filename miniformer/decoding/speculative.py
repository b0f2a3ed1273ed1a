"""Speculative decoding: a small model writes ahead, and the model itself checks several tokens in one pass.

What is written has the model's own distribution, whatever the small one proposes (Leviathan 2023, arXiv:2211.17192).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from miniformer.kernel.errors import UserError

from .loop import Feed, Row, wide
from .sampling import Sampling, Text


def speculate(feed: Feed, draft: Feed, row: Row, sampling: Sampling, ahead: int = 4,
              eos_id: int | None = None) -> Iterator[list[Row]]:
    """Write the text of `row`, the only one of both feeds, as `decode` would; each step gives it with one more token.

    Args:
        feed: the model with the prompt.
        draft: the small model with the same prompt and the same tokens.
        row: is written.
        sampling: how tokens are chosen, by both.
        ahead: tokens that the small model proposes at a time.
        eos_id: the token that ends a text.

    Raises:
        UserError: a state cannot go back, or not by `ahead` tokens; or `sampling` leaves no token.
    """
    for one in (feed, draft):
        for state in () if one.state is None else one.state.layers:
            if state is not None and not state.truncates:
                raise UserError(f"a draft's tokens may have to be taken back, and {type(state).__name__} cannot go back; write "
                                "without a draft, or without state")
            if state is not None and state.rewind_limit is not None and state.rewind_limit < ahead:
                raise UserError(f"ahead: at most {state.rewind_limit} tokens, by which {type(state).__name__} can go back; "
                                f"found {ahead}")
    row.finish = "length" if row.limit == 0 else row.finish
    start = feed.start.shape[1]
    while row.finish is None:
        count = min(ahead, row.limit - len(row.new) - 1)
        proposed, chances = _propose(draft, row, sampling, count)
        known = len(row.new)
        logits_TV = wide(_unread(feed, row, proposed)).cpu()[-count - 1:]
        text = Text(row.prompt, [*row.new])
        for i, logits_V in enumerate(logits_TV):
            wanted_V = sampling.probabilities(sampling.edited(logits_V, text), text)
            if i < count:
                token, taken = accept(wanted_V, chances[i], proposed[i], row.draw)
            else:  # all were taken, and the pass says what follows them too
                token, taken = _draw(wanted_V, row.draw), False
            text.new.append(token)
            row.new.append(token)
            row.logprobs.append(float(logits_V.log_softmax(dim=-1)[token]))
            row.finish = "eos" if token == eos_id else "length" if len(row.new) >= row.limit else None
            yield [row]
            if row.finish is not None:
                return
            if not taken:
                break
        accepted = len(row.new) - known - 1
        feed.truncate(start + known + accepted)
        draft.truncate(min(draft.length, start + known + accepted))


def accept(wanted_V: Tensor, chances_V: Tensor, proposed: int, generator: torch.Generator | None) -> tuple[int, bool]:
    """A token with distribution `wanted_V`, from one that was drawn with `chances_V`; and whether it is that one."""
    if float(torch.rand((), dtype=torch.float64, generator=generator)) * float(chances_V[proposed]) < float(wanted_V[proposed]):
        return proposed, True
    return _draw((wanted_V - chances_V).clamp(min=0), generator), False


def _draw(weights_V: Tensor, generator: torch.Generator | None) -> int:
    return int(torch.multinomial(weights_V, 1, generator=generator))


def _propose(draft: Feed, row: Row, sampling: Sampling, count: int) -> tuple[list[int], list[Tensor]]:
    """Tokens that the small model goes on with, and the distribution that each was drawn from."""
    text, chances = Text(row.prompt, [*row.new]), []
    for _ in range(count):
        logits_V = wide(_unread(draft, text, [])).cpu()[-1]
        chances.append(sampling.probabilities(sampling.edited(logits_V, text), text))
        text.new.append(_draw(chances[-1], row.draw))
    return text.new[len(row.new):], chances


def _unread(feed: Feed, text: Text, more: list[int]) -> Tensor:
    """Logits after each token that the model has not read yet, `[T, V]`; of the prompt only after the last."""
    if feed.length == 0:
        first = feed(feed.start)
        rest = [*text.new, *more]
        return first if not rest else torch.cat([first, feed.every(feed.start.new_tensor([rest]))[0]])
    return feed.every(feed.start.new_tensor([[*text.new, *more][feed.length - feed.start.shape[1]:]]))[0]
