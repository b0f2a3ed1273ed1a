from miniformer.kernel import FeedForward


class One(FeedForward):
    def forward(self, x, context):
        return x


class Two(FeedForward):
    def forward(self, x, context):
        return -x
