"""Decoders of other libraries, with random weights: to train in a plain loop, and to decode with greedily.

Each function imports its library when it is called. To train: the module and a loss of it and ids `[B, T + 1]`. To decode: a
function from prompts `[B, P]` and a count to texts `[B, P + N]`, by the library's own generation and with its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nanogpt import NanoGPT
from .sizes import Size

Trainable = tuple[nn.Module, Callable[[Any, Tensor], Tensor]]
Write = Callable[[Tensor, int], Tensor]


def train_nanogpt(size: Size) -> Trainable:
    return NanoGPT(size, size.length), lambda model, ids: model(ids[:, :-1], ids[:, 1:])


def decode_nanogpt(size: Size, length: int, threads: int) -> Write:
    return NanoGPT(size, length).eval().write


def gpt2(size: Size, length: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=size.vocab_size, n_positions=length, n_embd=size.d_model, n_layer=size.n_layers, n_head=size.n_heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu", bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa"))


def llama(size: Size, length: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=size.vocab_size, max_position_embeddings=length, hidden_size=size.d_model, intermediate_size=size.gated_d_ff,
        num_hidden_layers=size.n_layers, num_attention_heads=size.n_heads, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, attn_implementation="sdpa"))


def train_gpt2(size: Size) -> Trainable:
    return gpt2(size, size.length), _transformers_loss


def train_llama(size: Size) -> Trainable:
    return llama(size, size.length), _transformers_loss


def _transformers_loss(model: Any, ids: Tensor) -> Tensor:
    ids = ids[:, :-1]  # it shifts labels itself
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def decode_gpt2(size: Size, length: int, threads: int, cache: str | None = None) -> Write:
    return _transformers_write(gpt2(size, length), cache)


def decode_llama(size: Size, length: int, threads: int, cache: str | None = None) -> Write:
    return _transformers_write(llama(size, length), cache)


def _transformers_write(model: Any, cache: str | None) -> Write:
    model.eval()

    def write(ids: Tensor, count: int) -> Tensor:
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                              do_sample=False, pad_token_id=0, cache_implementation=cache)

    return write


def litgpt_neox(size: Size, length: int) -> Any:
    return _litgpt(size, length, parallel_residual=False, rotary_percentage=0.25, norm_class_name="LayerNorm",
                   mlp_class_name="GptNeoxMLP", intermediate_size=size.d_ff, bias=True)


def litgpt_llama(size: Size, length: int) -> Any:
    return _litgpt(size, length, parallel_residual=False, rotary_percentage=1.0, norm_class_name="RMSNorm",
                   mlp_class_name="LLaMAMLP", intermediate_size=size.gated_d_ff, bias=False)


def _litgpt(size: Size, length: int, **options: Any) -> Any:
    from litgpt.model import GPT, Config

    model = GPT(Config(block_size=length, n_layer=size.n_layers, n_embd=size.d_model, n_head=size.n_heads,
                       vocab_size=size.vocab_size, padded_vocab_size=size.vocab_size, **options))
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def train_litgpt_neox(size: Size) -> Trainable:
    return litgpt_neox(size, size.length), _litgpt_loss


def train_litgpt_llama(size: Size) -> Trainable:
    return litgpt_llama(size, size.length), _litgpt_loss


def _litgpt_loss(model: Any, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def decode_litgpt_neox(size: Size, length: int, threads: int) -> Write:
    return _litgpt_write(litgpt_neox(size, length))


def decode_litgpt_llama(size: Size, length: int, threads: int) -> Write:
    return _litgpt_write(litgpt_llama(size, length))


def _litgpt_write(model: Any) -> Write:
    from litgpt.generate.base import batched_generate_fn, generate_fn

    model.eval()
    rows = 0

    def write(ids: Tensor, count: int) -> Tensor:
        nonlocal rows
        if len(ids) != rows:
            rows = len(ids)
            model.set_kv_cache(batch_size=rows)
        total = ids.shape[1] + count
        if rows == 1:
            steps = generate_fn(model, ids[0], total, temperature=0.0, include_prompt=False, include_eos=True)
            new = torch.cat([step.view(1) for step in steps])[None]
        else:
            columns = batched_generate_fn(model, ids, total, sample_args={"temperature": 0.0}, include_prompt=False,
                                          include_eos=True)
            new = torch.cat([torch.stack(list(column)).view(rows, 1) for column in columns], dim=1)
        return torch.cat([ids, new], dim=1)

    return write


def x_transformers(size: Size, length: int) -> Any:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    return AutoregressiveWrapper(TransformerWrapper(
        num_tokens=size.vocab_size, max_seq_len=length, tie_embedding=True,
        attn_layers=Decoder(dim=size.d_model, depth=size.n_layers, heads=size.n_heads,
                            attn_dim_head=size.d_model // size.n_heads, attn_flash=True)))


def train_x_transformers(size: Size) -> Trainable:
    return x_transformers(size, size.length), lambda model, ids: model(ids[:, :-1])  # it shifts them itself


def decode_x_transformers(size: Size, length: int, threads: int) -> Write:
    model = x_transformers(size, length).eval()

    def write(ids: Tensor, count: int) -> Tensor:
        return torch.cat([ids, model.generate(ids, count, temperature=0.0, cache_kv=True)], dim=1)

    return write
