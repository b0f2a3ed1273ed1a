"""The PositionEncoding interface: how tokens know where they are.

Shapes: B batch, T query length, S key length, D = d_model, H heads, E head width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from .component import Component

Role = Literal["q", "k"]


class PositionEncoding(Component):
    """Gives tokens their positions through up to three hooks: `embed`, `rotate` and `bias`.

    Each hook here changes nothing, so the class itself is "no position encoding"; a subclass overrides those that it needs.

    Class data:
        extrapolates: works at positions from `max_seq_len` on; otherwise the model refuses longer sequences.
        learns_bias: its bias has parameters, so the attention must pass gradients to it.
        relative: the effect of `rotate` and `bias` on a query and a key depends only on the difference of their positions.

    Heads are d_model // n_heads elements wide. Where an attention rotates heads of another width E, the model builds this
    encoding with `d_model` = E n_heads and uses only its `rotate`.
    """

    extrapolates: ClassVar[bool] = False
    learns_bias: ClassVar[bool] = False
    relative: ClassVar[bool] = False

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.max_seq_len = d_model, n_heads, max_seq_len

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Change the embeddings `[B, T, D]` of tokens at `positions` `[B, T]`, before the first layer."""
        return x

    def precompute(self, positions: Tensor) -> Any:
        """Compute once per forward what `rotate` needs of `positions` `[B, T]`, such as tables of sines.

        By default these are the positions themselves.
        """
        return positions

    def rotate(self, x: Tensor, where: Any, role: Role) -> Tensor:
        """Change queries or keys `[B, H, T, E]` before their product.

        Args:
            x: the queries or the keys.
            where: the result of `precompute` for their positions.
            role: which of the two they are.
        """
        return x

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """Give the bias `[B or 1, H, T, S]` that is added to attention scores, once per forward.

        Args:
            q_positions: `[B, T]`, of the queries.
            k_positions: `[B, S]`, of the keys.
        """
        return None

    def causal_bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """Give the bias of a causal model, where no key is later than its query; by default that of `bias`."""
        return self.bias(q_positions, k_positions)

    @classmethod
    def hooks(cls) -> frozenset[str]:
        """The hooks that this class overrides, of `embed`, `rotate` and `bias`."""
        return frozenset(hook.removeprefix("causal_") for hook in ("embed", "rotate", "bias", "causal_bias")
                         if getattr(cls, hook) is not getattr(PositionEncoding, hook))
