"""T5 1.0 (ReLU, scores scaled) and 1.1 (gated GELU, a matrix of its own for scores) (Raffel et al. 2020, arXiv:1910.10683)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from miniformer.model.seq2seq_transformer import Seq2SeqTransformer

from .architecture import ACTIVATIONS, Architecture, Fields
from .pattern import Case, Field, Free, OneOf, Unsupported
from .weights import Table, rows

SHARED, HEAD = "shared.weight", "lm_head.weight"
N_POSITIONS = 512
"""T5 has no longest sequence; this is the length of the sequences that it was trained on."""


def read(fields: Fields, weights: Mapping[str, Tensor]) -> Fields:
    """Complete fields that depend on other fields, on the version of transformers, and on the weights.

    In older versions `tie_word_embeddings` said two things: that the head uses the matrix of the embedding, and that scores are
    scaled. Now `scale_decoder_outputs` says the second, and for the first transformers looks whether the file has a head.
    """
    if (fields["num_decoder_layers"] or fields["num_layers"]) != fields["num_layers"]:
        raise Unsupported("num_decoder_layers", fields["num_decoder_layers"], [fields["num_layers"]])
    d_model, d_head = fields["d_model"], fields["d_kv"]
    scaled = fields["scale_decoder_outputs"]
    scaled = fields["tie_word_embeddings"] is not False if scaled is None else scaled
    tied = HEAD not in weights or (SHARED in weights and torch.equal(weights[HEAD], weights[SHARED]))
    start = fields["decoder_start_token_id"]
    return {**fields, "d_head": None if d_head * fields["num_heads"] == d_model else d_head, "tied": tied,
            "head_scale": d_model ** -0.5 if scaled else 1.0, "start": fields["pad_token_id"] or 0 if start is None else start}


def write(fields: Fields) -> Fields:
    """The fields as all versions of transformers read them."""
    written = {name: value for name, value in fields.items() if name not in ("d_head", "tied", "head_scale", "start")}
    d_model, scaled = fields["d_model"], fields["head_scale"] != 1
    if scaled and fields["head_scale"] != d_model ** -0.5:
        raise Unsupported("head.scale", fields["head_scale"], [1.0, d_model ** -0.5])
    if fields["d_head"] is None:
        written["d_kv"] = d_model // fields["num_heads"]
    else:
        written["d_kv"] = fields["d_head"]
    return {**written, "num_decoder_layers": fields["num_layers"], "tie_word_embeddings": scaled,
            "scale_decoder_outputs": scaled, "decoder_start_token_id": fields["start"]}


def stack(side: str, ffn: int) -> Table:
    """The rows of the encoder or the decoder, whose feed-forward is sub-layer `ffn`."""
    ours, theirs = f"{side}.blocks.{{i}}.", f"{side}.block.{{i}}.layer."
    dense = f"{theirs}{ffn}.DenseReluDense."
    return {
        f"{side}.positions.0.table.weight": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        **attention(f"{ours}attention.", f"{theirs}0.SelfAttention."),
        f"{ours}norm_attention.weight": f"{theirs}0.layer_norm.weight",
        f"{ours}norm_ffn.weight": f"{theirs}{ffn}.layer_norm.weight",
        f"{ours}ffn.up.weight": f"{dense}wi.weight",
        f"{ours}ffn.gate_up.weight": (f"{dense}wi_0.weight", f"{dense}wi_1.weight"),
        f"{ours}ffn.down.weight": f"{dense}wo.weight",
        f"{side}.norm.weight": f"{side}.final_layer_norm.weight",
    }


def attention(ours: str, theirs: str) -> Table:
    """The rows of an attention."""
    return {f"{ours}q.weight": f"{theirs}q.weight", f"{ours}kv.weight": (f"{theirs}k.weight", f"{theirs}v.weight"),
            f"{ours}out.weight": f"{theirs}o.weight"}


GATED = {"gated-gelu": "", **{f"gated-{name}": ours for name, ours in ACTIVATIONS.items()}} | {"gated-gelu": "gelu-tanh"}
"""Values of `feed_forward_proj` for gated feed-forwards, and our activations; `gated-gelu` means the tanh approximation."""
ATTENTION: Mapping[str, Any] = {
    "name": "mha", "n_kv_heads": OneOf(Case(None), Case(Field("num_heads"))), "d_head": Field("d_head"), "scale": 1.0,
    "dropout": Free(Field("dropout_rate")), "kernel": Free("auto"),
}

T5 = Architecture(
    family="T5", name="T5ForConditionalGeneration", model_type="t5", base="", task="seq2seq", assembly=Seq2SeqTransformer,
    read=read, write=write,
    spec={
        "vocab_size": Field("vocab_size"), "d_model": Field("d_model"), "n_heads": Field("num_heads"),
        "n_layers": Field("num_layers"), "d_ff": Field("d_ff"), "max_seq_len": Field("n_positions"),
        "dropout": Field("dropout_rate"), "attention": ATTENTION, "cross_attention": ATTENTION,
        "position": {"name": "t5-bias", "n_buckets": Field("relative_attention_num_buckets"),
                     "max_distance": Field("relative_attention_max_distance")},
        "ffn": OneOf(Case({"name": "relu"}, {"feed_forward_proj": "relu"}),
                     Case({"name": "gelu"}, {"feed_forward_proj": "gelu"}),
                     Case({"name": "swiglu"}, {"feed_forward_proj": "gated-silu"}),
                     Case({"name": "glu", "activation": Field("feed_forward_proj", GATED)}),
                     Case({"name": "mlp", "activation": Field("feed_forward_proj", ACTIVATIONS)})),
        "norm": {"name": "rmsnorm", "eps": Field("layer_norm_epsilon")},
        "head": {"name": "lm", "tied": Field("tied"), "scale": Field("head_scale")},
        "bos_id": Field("start"), "eos_id": Field("eos_token_id"), "activation_checkpointing": Free(False),
    },
    defaults={
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": None,
        "num_heads": 8, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "eos_token_id": 1, "pad_token_id": 0,
        "decoder_start_token_id": None, "tie_word_embeddings": None, "scale_decoder_outputs": None, "n_positions": N_POSITIONS,
    },
    fixed={"is_encoder_decoder": True, "is_decoder": False},
    inert=frozenset({"initializer_factor", "classifier_dropout", "dense_act_fn", "is_gated_act"}),
    weights=rows({
        "embedding.weight": SHARED, **stack("encoder", 1), **stack("decoder", 2),
        **attention("decoder.blocks.{i}.cross.", "decoder.block.{i}.layer.1.EncDecAttention."),
        "decoder.blocks.{i}.norm_cross.weight": "decoder.block.{i}.layer.1.layer_norm.weight",
        "head.out.weight": HEAD,
    }),
    copies={f"{name}.weight": SHARED for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")},
    left_out={r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight":
              "a bias of the cross-attention, which transformers does not read either"},
)
