"""Texts of a required form: a processor for `Sampling` that allows only tokens with which the text can still match the form.

The package `llguidance` does the work; it is installed with the extra `constrained`.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from miniformer.data.tokenizer import Tokenizer
from miniformer.decoding.sampling import Text
from miniformer.kernel.errors import UserError

MATCHERS_KEPT = 512
"""Texts whose place in the grammar is remembered. It should be more than are written at a time."""


class Constraint:
    """Forbids every token after which the text could not be completed to the form; and the end token, until it is complete.

    Args:
        tokenizer: of the texts.
        grammar: as `llguidance` takes it; `regex` and `json_schema` make one.
        eos_id: the token that ends a text; None: the tokenizer's.

    Raises:
        UserError: the grammar is not valid, or `llguidance` is not installed or cannot use this tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: str, eos_id: int | None = None) -> None:
        llguidance = library()
        eos_id = tokenizer.eos_id if eos_id is None else eos_id
        if eos_id is None:
            raise UserError("a form ends with the tokenizer's end token, and this tokenizer has none")
        try:
            tokens = llguidance.LLTokenizer(tokenizer.to_json(), n_vocab=tokenizer.vocab_size, eos_token=eos_id)
        except ValueError as error:
            raise UserError(f"llguidance cannot use this tokenizer: {error}") from None
        start = llguidance.LLMatcher(tokens, grammar, log_level=0)
        if start.is_error():
            raise UserError(f"not a valid form: {start.get_error().strip()}")
        self._start = start
        self._after: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    @classmethod
    def regex(cls, tokenizer: Tokenizer, pattern: str, eos_id: int | None = None) -> Self:
        """Texts that match a regular expression, in the syntax of Rust's `regex`, from beginning to end."""
        return cls(tokenizer, library().LLMatcher.grammar_from_regex(pattern), eos_id)

    @classmethod
    def json_schema(cls, tokenizer: Tokenizer, schema: Mapping[str, Any], eos_id: int | None = None) -> Self:
        """Texts that are JSON of a schema, without line breaks and with at most one space between parts."""
        spaces = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
        try:
            text = json.dumps(dict(schema), allow_nan=False)
            text.encode()
            grammar = library().LLMatcher.grammar_from_json_schema(text, overrides=spaces)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"not a valid schema: {error}") from None
        return cls(tokenizer, grammar, eos_id)

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        mask = torch.frombuffer(bytearray(self._matcher(tuple(text.new)).compute_logit_bias()), dtype=torch.uint8) != 0
        allowed = torch.zeros(len(logits), dtype=torch.bool)  # a model may have more outputs than its tokenizer has tokens
        allowed[:len(mask)] = mask[:len(logits)]
        return logits.masked_fill(~allowed, -math.inf)

    def _matcher(self, new: tuple[int, ...]) -> Any:
        """The matcher after these tokens, made from the one before the last of them if that is remembered."""
        if not new:
            return self._start
        if new not in self._after:
            earlier = self._after.get(new[:-1], self._start)
            matcher = earlier.deep_copy()
            matcher.consume_tokens(list(new if earlier is self._start else new[-1:]))
            self._after[new] = matcher
            while len(self._after) > MATCHERS_KEPT:
                self._after.popitem(last=False)
        self._after.move_to_end(new)
        return self._after[new]


def library() -> Any:
    """The package `llguidance`, which is optional.

    Raises:
        UserError: it is not installed.
    """
    try:
        import llguidance
    except ModuleNotFoundError:
        raise UserError("texts of a given form need llguidance; to get it: pip install 'miniformer[constrained]'") from None
    return llguidance
