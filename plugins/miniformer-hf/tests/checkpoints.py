"""Tiny checkpoints of transformers with random weights, and the outputs of transformers for them, which tests compare with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from miniformer.kernel import Context, Layout

V = 41
COMMON = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {**COMMON, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 20}
LLAMA = {**COMMON, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 32}
BERT = {"vocab_size": V, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": 16}
T5 = {"vocab_size": V, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}


def gpt2(**fields: Any) -> nn.Module:
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **fields})))


def llama(**fields: Any) -> nn.Module:
    return randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **fields})))


def masked(**fields: Any) -> nn.Module:
    return randomised(transformers.BertForMaskedLM(transformers.BertConfig(**{**BERT, **fields})))


def sequence(**fields: Any) -> nn.Module:
    config = transformers.BertConfig(**{**BERT, "id2label": {0: "no", 1: "yes", 2: "maybe"}, **fields})
    return randomised(transformers.BertForSequenceClassification(config))


def tokens(**fields: Any) -> nn.Module:
    config = transformers.BertConfig(**{**BERT, "id2label": {0: "noun", 1: "verb"}, **fields})
    return randomised(transformers.BertForTokenClassification(config))


def t5(**fields: Any) -> nn.Module:
    """T5 1.0."""
    return randomised(transformers.T5ForConditionalGeneration(transformers.T5Config(**{**T5, **fields})))


def t5_11(**fields: Any) -> nn.Module:
    """T5 1.1: its head has a matrix of its own."""
    model = t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **fields)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.shared.weight))
    return model


MAKERS = {maker.__name__: maker for maker in (gpt2, llama, masked, sequence, tokens, t5, t5_11)}


def randomised(model: nn.Module) -> nn.Module:
    """The model with every parameter drawn anew, so that none hides behind its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.eval()


def saved(model: nn.Module, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


@contextmanager
def exact() -> Iterator[None]:
    """transformers computes the mean square of these norms in float32 whatever the type; here, in the input's."""
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    with patch.object(LlamaRMSNorm, "forward", forward), patch.object(T5LayerNorm, "forward", forward):
        yield


def ids_of(batch: int, length: int, vocab_size: int = V) -> Tensor:
    return torch.randint(3, vocab_size, (batch, length))


@torch.no_grad()
def outputs(model: Any, ids: Tensor, lengths: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The output of transformers, and `[B, T]`, True at tokens that are not padding."""
    real = Layout.from_lengths(lengths or [ids.shape[1]] * len(ids), ids.shape[1]).real
    if model.config.is_encoder_decoder:
        target = ids.roll(1, dims=1)
        return model(input_ids=ids, attention_mask=real.long(), decoder_input_ids=target).logits, torch.ones_like(real)
    return model(input_ids=ids, attention_mask=real.long()).logits, real


@torch.no_grad()
def ours(model: Any, ids: Tensor, lengths: list[int] | None = None, *, summary: bool = False) -> Tensor:
    """The output of miniformer for the same tokens."""
    layout = Layout.from_lengths(lengths or [ids.shape[1]] * len(ids), ids.shape[1])
    if model.has_source:
        return model(ids, ids.roll(1, dims=1), source_layout=layout)[0]
    return model(ids, Context(layout), readout=(lambda x, head: head.summary(x, layout)) if summary else None)


CORPUS = ["the quick brown fox jumps over the lazy dog", "naïve café, 12 owls!", "a cat sat on the mat"] * 5


def bpe() -> Backend:
    """A byte-level BPE with the mark of GPT-2."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return backend


def llama_bpe() -> Backend:
    """A byte-level BPE that marks where a text begins, as Llama 3 does."""
    backend = bpe()
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    begin = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))])
    return backend


def word_piece() -> Backend:
    """BERT's."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=120, show_progress=False, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
                                                           [("[CLS]", 2), ("[SEP]", 3)])
    return backend


def unigram() -> Backend:
    """T5's."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=80, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"))
    backend.add_special_tokens([AddedToken("<extra_id_0>", special=True)])
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return backend
