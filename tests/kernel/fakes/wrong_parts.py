from torch import nn

from miniformer.kernel import Norm

not_a_class = 3


class NotANorm(nn.Module):
    pass


class Unfinished(Norm):
    pass


class WrongSizes(Norm):
    def __init__(self, d_model, eps):
        super().__init__(d_model)

    def forward(self, x):
        return x


class OptionCalledName(Norm):
    def __init__(self, d_model, *, name="x"):
        super().__init__(d_model)

    def forward(self, x):
        return x


class RenamedSizes(Norm):
    def __init__(self, dim, eps):
        super().__init__(dim)

    def forward(self, x):
        return x


class NoSizes(RenamedSizes):
    def __init__(self):
        super().__init__(1, 0)


class Infinite(RenamedSizes):
    def __init__(self, d_model, *, limit: float = float("inf")):
        super().__init__(d_model, limit)
