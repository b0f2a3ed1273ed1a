from miniformer.kernel import Attention, FeedForward


class TalkingHeads(Attention):
    """Looks at nothing."""

    def forward(self, x, context, state=None):
        return x


class Parts:
    class Nested(FeedForward):
        def forward(self, x, context):
            return x
