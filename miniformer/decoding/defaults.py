"""How text is written where nothing else is asked for: the defaults of `generate` in Python and on the command line.

They are said here once, and without torch, so that the command line can show them before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The default of each setting; `Sampling` says what they mean.

    Attributes:
        max_new_tokens: the most tokens that are written after a prompt.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0


DEFAULTS = GenerationDefaults()
