"""Multi-head latent attention: keys and values of all heads made from one small vector per token, which is all it keeps.

Shapes: B batch, T query length, S key length, D d_model, H heads, C head width, L latent width, R rotary width.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from miniformer.decoding.state import BufferState, visible
from miniformer.kernel.context import Context
from miniformer.kernel.interfaces import Attention, Norm
from miniformer.kernel.masks import Mask
from miniformer.kernel.spec import Slot, build
from miniformer.kernel.state import State
from miniformer.ops.attention_kernels import KernelName, choose
from miniformer.ops.linear import is_just_a_matrix
from miniformer.ops.room import empty_room

from .init import RESIDUAL, linear


class LatentAttention(Attention):
    """Attention whose state is a latent vector and a rotary key per token (DeepSeek-V2 2024, arXiv:2405.04434).

    Each head's query and key have a part of C elements without position, the key's made from the latent, and a part of R
    elements that the position encoding rotates, the key's shared by all heads.

    Args:
        d_model: D.
        n_heads: H, a divisor of D.
        d_latent: L, width of the vector from which keys and values are made; None: D / 4. It is normalised, and a norm over
            fewer than four numbers leaves little of them.
        d_query_latent: width of such a vector for queries; None: queries are made from the input.
        d_rotary: R; None: half of a head.
        norm: over the latents.
        dropout: on the attention weights, in training.
        kernel: what computes it.
    """

    cross: ClassVar[bool] = True

    def __init__(self, d_model: int, n_heads: int, *, d_latent: Annotated[int | None, Field(ge=4)] = None,
                 d_query_latent: Annotated[int | None, Field(ge=4)] = None,
                 d_rotary: Annotated[int | None, Field(ge=1)] = None, norm: Slot[Norm] = "rmsnorm",
                 dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0, kernel: KernelName = "auto") -> None:
        super().__init__(d_model, n_heads)
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
        self.d_head, self.dropout = d_model // n_heads, dropout
        self.d_latent = d_latent or max(4, d_model // 4)
        self.d_rotary = self.rotary_width = d_rotary or max(2, 2 * (self.d_head // 4))
        self.kernel = choose(kernel, dropout=dropout)
        self.trains_bias = "bias gradient" in self.kernel.abilities
        self.q_latent = nn.Identity() if d_query_latent is None else nn.Sequential(
            linear(d_model, d_query_latent), build(Norm, norm, d_query_latent))
        self.q = linear(d_query_latent or d_model, n_heads * (self.d_head + self.d_rotary))
        self.down = linear(d_model, self.d_latent + self.d_rotary)
        self.norm = build(Norm, norm, self.d_latent)
        self.up = linear(self.d_latent, 2 * n_heads * self.d_head)
        self.out = linear(d_model, d_model, scale=RESIDUAL)

    def forward(self, x: Tensor, context: Context, state: State | None = None) -> Tensor:
        B, T, D = x.shape
        q_BTHE = self.q(self.q_latent(x)).view(B, T, self.n_heads, self.d_head + self.d_rotary)
        q_BHTC, q_BHTR = q_BTHE.transpose(1, 2).tensor_split((self.d_head,), dim=-1)
        q_BHTR = context.rotate(q_BHTR, "q")
        source = x if context.memory is None else context.memory.hidden
        latent_B1SL, k_B1SR = self.down(source)[:, None].tensor_split((self.d_latent,), dim=-1)
        latent_B1SL = self.norm(latent_B1SL)
        mask, bias = context.mask(self.rule), context.bias
        if context.memory is None:
            k_B1SR = context.rotate(k_B1SR, "k")
            if state is not None:  # the latent and the key are remembered as one vector
                new = torch.cat([latent_B1SL, k_B1SR], dim=-1)
                (latent_and_key,), mask, bias = visible((new,), context, self.rule, state)
                latent_B1SL, k_B1SR = latent_and_key.tensor_split((self.d_latent,), dim=-1)
        if state is not None and is_just_a_matrix(self.up):
            out_BHTC = self._absorbed(q_BHTC, q_BHTR, latent_B1SL, k_B1SR, mask, bias)
        else:
            k_BHSC, v_BHSC = self.up(latent_B1SL[:, 0]).view(B, -1, 2, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4)
            k_BHSR = k_B1SR.expand(-1, self.n_heads, -1, -1)
            q, k = torch.cat([q_BHTC, q_BHTR], dim=-1), torch.cat([k_BHSC, k_BHSR], dim=-1)
            out_BHTC = self._attend(q, k, v_BHSC, mask, bias)
        return self.out(out_BHTC.transpose(1, 2).reshape(B, T, D))

    def _absorbed(self, q_BHTC: Tensor, q_BHTR: Tensor, latent_B1SL: Tensor, k_B1SR: Tensor, mask: Mask,
                  bias: Tensor | None) -> Tensor:
        """Attention in the space of the latents, `[B, H, T, C]`: cheap for few queries.

        The matrix that makes a head's keys from the latents is applied to the queries instead, and the one that makes its
        values to the output (DeepSeek-V2, section 2.1.2). So no key or value of S tokens is made. It needs the matrix of `up`
        itself; a layer that is wrapped or adapted goes the other way.
        """
        up_k_HCL, up_v_HCL = self.up.weight.view(2, self.n_heads, self.d_head, self.d_latent)
        q, k = torch.cat([q_BHTC @ up_k_HCL, q_BHTR], dim=-1), torch.cat([latent_B1SL, k_B1SR], dim=-1)
        out_BHTL = self._attend(q, k, latent_B1SL, mask, bias)
        return out_BHTL @ up_v_HCL.transpose(-1, -2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None) -> Tensor:
        options = {"dropout": self.dropout} if self.dropout and self.training else {}
        return self.kernel.compute(q, k, v, mask, bias, scale=(self.d_head + self.d_rotary) ** -0.5, **options)

    def init_state(self, batch: int, capacity: int) -> LatentState:
        return LatentState(empty_room(self.down, 1, batch, 1, capacity, self.d_latent + self.d_rotary))


class LatentState(BufferState):
    """The latent and the rotated key of the columns so far: a buffer `[1, B, 1, C, L + R]`."""
