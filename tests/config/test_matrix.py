"""Whether parts go together is what a config says of them, and why not is its own sentence."""

from miniformer.config.matrix import refusal


def test_parts_that_do_not_go_together_are_refused_with_the_configs_reason():
    assert refusal("encoder", attention="mha", position="alibi") == ""
    assert refusal("decoder", attention="linear", position="alibi") == (
        "position 'alibi' needs bias, which attention 'linear' does not apply")
