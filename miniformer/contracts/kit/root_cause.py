"""The order in which one broken promise explains others, from basic to derived.

What cannot be built cannot run. What overwrites its input, or gives other numbers each time, keeps no promise about its
outputs. What hears a token that it must not hear also decodes wrongly. So of many broken promises the first in this order is
probably the fault, and the others are its consequences.
"""

from __future__ import annotations

BASIC_FIRST = (
    # it can be built, its outputs have the right shape, and they depend on nothing but its inputs
    "builds-from-its-options", "keeps-the-shape", "hooks-have-their-shapes", "leaves-its-inputs-alone",
    "is-the-same-twice-in-eval", "leaves-the-process-alone", "a-pass-leaves-it-as-it-was", "is-saved-and-loaded",
    # each row and each token hears what it may, and nothing else
    "rows-stand-alone", "no-look-ahead", "documents-do-not-mix", "padding-is-not-heard", "hears-what-it-may",
    "acts-on-each-position", "acts-on-each-vector", "asks-positions-only", "positions-stand-alone", "selecting-is-picking",
    "summaries-are-blind-to-padding",
    # numbers are computed in float64 here, so that a wrong dtype breaks nothing above
    "keeps-dtype-and-device",
    # what a part of it does for the whole: a memory, positions, a loss
    "queries-and-keys-are-rotated", "reads-a-memory", "records-losses-that-train", "padding-changes-nothing",
    "differences-decide", "rotation-keeps-lengths", "tells-places-apart",
    # what follows for whole texts, and for texts that are decoded in steps
    "packed-is-separate", "padded-is-alone", "steps-give-the-whole", "states-are-separate", "reordered-rows-go-on",
    "cut-states-go-on", "a-state-tells-its-size", "long-texts-go-on", "joined-rows-go-on", "static-steps-go-on",
    # of a task: it is made again as it was, it reads and gives back every record, and then its figures
    "what-it-learnt-makes-it-again", "records-survive-json", "collates-the-same-each-time", "predicts-every-row-in-order",
    "metrics-match-the-loss", "metrics-do-not-hang-on-batching", "padding-does-not-count", "losses-add-up",
)
"""Properties in that order. Those that are not named come after them, in the order of reports."""
LEAST = ("extreme-inputs-are-finite", "starts-spread-out", "trains-every-parameter", "gradients-are-right",
         "runs-under-autocast", "every-option-counts")
"""Properties that many faults break and that explain the least; they come last."""


def rank(name: str) -> int:
    """The place of a property in the order; the smaller it is, the more others it explains."""
    if name in BASIC_FIRST:
        return BASIC_FIRST.index(name)
    return len(BASIC_FIRST) + (1 + LEAST.index(name) if name in LEAST else 0)
