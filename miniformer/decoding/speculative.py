"""Speculative decoding: a small draft model proposes several tokens, and the model checks them all in one pass.

The texts have the model's own distribution, whatever the draft proposes (Leviathan 2023, arXiv:2211.17192).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from miniformer.kernel.errors import UserError

from .loop import Feed, RunningText, wide
from .sampling import Sampling, Text


def speculate(feed: Feed, draft: Feed, text: RunningText, sampling: Sampling, ahead: int = 4,
              eos_id: int | None = None) -> Iterator[list[RunningText]]:
    """Write one text, the only row of both feeds, with the distribution of `decode`; each step yields it with a token more.

    Args:
        feed: the model with the prompt.
        draft: the draft model with the prompt; both have one vocabulary.
        text: the text to write.
        sampling: how both choose tokens.
        ahead: tokens that the draft proposes at a time.
        eos_id: the token that ends a text.

    Raises:
        UserError: a state cannot go back, or not by `ahead` tokens; or `sampling` leaves no token.
    """
    _check_rewinds(feed, ahead)
    _check_rewinds(draft, ahead)
    text.finish = "length" if text.limit == 0 else text.finish
    start = feed.start.shape[1]
    while text.finish is None:
        count = min(ahead, text.limit - len(text.new) - 1)
        proposed, draft_probabilities = _propose(draft, text, sampling, count)
        logits_TV = wide(_read_unread(feed, text, proposed)).cpu()[-count - 1:]
        checked = Text(text.prompt, [*text.new])
        for i, logits_V in enumerate(logits_TV):
            probabilities_V = sampling.probabilities(sampling.edited(logits_V, checked), checked)
            if i < count:
                token, is_accepted = accept(probabilities_V, draft_probabilities[i], proposed[i], text.draw)
            else:  # every proposal was accepted, and the same pass gives the token after them too
                token, is_accepted = _draw(probabilities_V, text.draw), False
            checked.new.append(token)
            text.new.append(token)
            text.logprobs.append(float(logits_V.log_softmax(dim=-1)[token]))
            text.finish = "eos" if token == eos_id else "length" if len(text.new) >= text.limit else None
            yield [text]
            if text.finish is not None:
                return
            if not is_accepted:
                break
        # the last token was not read yet, and of the proposals after it neither model may remember anything
        known = start + len(text.new) - 1
        feed.truncate(known)
        draft.truncate(min(draft.length, known))


def _check_rewinds(feed: Feed, ahead: int) -> None:
    """Refuse a feed whose states cannot forget `ahead` tokens that were not accepted."""
    for state in () if feed.state is None else feed.state.layers:
        if state is None:
            continue
        if not state.truncates:
            raise UserError(f"a draft's tokens may have to be taken back, and {type(state).__name__} cannot go back; write "
                            "without a draft, or without state")
        if state.rewind_limit is not None and state.rewind_limit < ahead:
            raise UserError(f"ahead: at most {state.rewind_limit} tokens, by which {type(state).__name__} can go back; "
                            f"found {ahead}")


def accept(probabilities_V: Tensor, draft_probabilities_V: Tensor, proposed: int,
           generator: torch.Generator | None) -> tuple[int, bool]:
    """A token of the distribution `probabilities_V`, and whether it is the one that the draft proposed.

    The proposal is accepted with probability min(1, p / q), where p and q are its probabilities by the model and by the draft.
    Otherwise the token is drawn from max(0, p - q), normalised (Leviathan 2023, section 2.3).
    """
    p, q = float(probabilities_V[proposed]), float(draft_probabilities_V[proposed])
    if float(torch.rand((), dtype=torch.float64, generator=generator)) * q < p:
        return proposed, True
    return _draw((probabilities_V - draft_probabilities_V).clamp(min=0), generator), False


def _draw(weights_V: Tensor, generator: torch.Generator | None) -> int:
    return int(torch.multinomial(weights_V, 1, generator=generator))


def _propose(draft: Feed, text: RunningText, sampling: Sampling, count: int) -> tuple[list[int], list[Tensor]]:
    """The next `count` tokens by the draft, and the distribution that each was drawn from."""
    extended, probabilities = Text(text.prompt, [*text.new]), []
    for _ in range(count):
        logits_V = wide(_read_unread(draft, extended, [])).cpu()[-1]
        probabilities.append(sampling.probabilities(sampling.edited(logits_V, extended), extended))
        extended.new.append(_draw(probabilities[-1], text.draw))
    return extended.new[len(text.new):], probabilities


def _read_unread(feed: Feed, text: Text, proposed: list[int]) -> Tensor:
    """Feed the tokens that the model has not read yet; return logits `[T, V]` after each, of the prompt after its last only."""
    if feed.length == 0:
        after_prompt = feed(feed.start)
        rest = [*text.new, *proposed]
        return after_prompt if not rest else torch.cat([after_prompt, feed.logits_after_each(feed.start.new_tensor([rest]))[0]])
    unread = [*text.new, *proposed][feed.length - feed.start.shape[1]:]
    return feed.logits_after_each(feed.start.new_tensor([unread]))[0]
