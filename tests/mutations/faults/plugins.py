"""Faults in our own plugins, as far as their tests run without being installed."""

from ..fault import Fault

MOE, MIXTURE = "plugins/miniformer-moe/tests/test_moe.py", "plugins/miniformer-moe/miniformer_moe/mixture.py"

FAULTS = (
    Fault("weights-of-experts-do-not-add-up", MIXTURE, "if self.top_k > 1:", "if self.top_k > 99:",
          f"{MOE}::test_it_is_the_loop_over_tokens", "a mixture is not Mixtral's"),
    Fault("experts-are-not-balanced", MIXTURE, "loss=True", "loss=False",
          f"{MOE}::test_it_is_the_loop_over_tokens", "all tokens go to one expert"),
)
