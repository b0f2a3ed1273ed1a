"""Faults in our own plugins, as far as their tests run without being installed."""

from ..fault import Fault

MOE, MIXTURE = "plugins/miniformer-moe/tests/test_moe.py", "plugins/miniformer-moe/miniformer_moe/mixture.py"

FAULTS = (
    Fault("weights-of-experts-do-not-add-up", MIXTURE, "if self.top_k > 1:", "if self.top_k > 99:", MOE,
          "a mixture is not Mixtral's"),
    Fault("experts-are-not-balanced", MIXTURE, "loss=True", "loss=False", MOE, "all tokens go to one expert"),
    Fault("padding-has-experts", MIXTURE, "if not context.layout.padded:", "if True:", MOE,
          "the balance depends on padding"),
)
