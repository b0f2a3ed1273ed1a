"""GPT-2 with its language-modelling head (Radford et al. 2019)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from .architecture import ACTIVATIONS, Architecture, Fields
from .pattern import Case, Field, Free, OneOf
from .weights import rows

logger = logging.getLogger(__name__)
OURS, THEIRS = "stack.blocks.{i}.", "transformer.h.{i}."


def read(fields: Fields, weights: Mapping[str, Tensor]) -> Fields:
    """Fill in `n_inner`, whose default depends on another field. Of two dropout rates, `resid_pdrop` is used."""
    if fields["embd_pdrop"] != fields["resid_pdrop"]:
        logger.warning("embd_pdrop %s: miniformer has one dropout for embedding and branches, and uses resid_pdrop %s",
                       fields["embd_pdrop"], fields["resid_pdrop"])
    return {**fields, "n_inner": fields["n_inner"] or 4 * fields["n_embd"]}


def write(fields: Fields) -> Fields:
    """Write the one dropout rate for both places."""
    return {**fields, "embd_pdrop": fields["resid_pdrop"]}


GPT2 = Architecture(
    family="GPT-2", name="GPT2LMHeadModel", model_type="gpt2", base="transformer.", task="language-modeling",
    read=read, write=write,
    spec={
        "vocab_size": Field("vocab_size"), "d_model": Field("n_embd"), "n_heads": Field("n_head"), "n_layers": Field("n_layer"),
        "d_ff": Field("n_inner"), "max_seq_len": Field("n_positions"), "dropout": Field("resid_pdrop"), "causal": True,
        "attention": {"name": "mha", "n_kv_heads": OneOf(Case(None), Case(Field("n_head"))), "bias": True,
                      "dropout": Field("attn_pdrop"), "kernel": Free("auto"),
                      "scale": OneOf(Case(None, {"scale_attn_weights": True}), Case(1.0, {"scale_attn_weights": False}))},
        "position": {"name": "learned"},
        "ffn": OneOf(Case({"name": "gelu", "bias": True}, {"activation_function": "gelu"}),
                     Case({"name": "relu", "bias": True}, {"activation_function": "relu"}),
                     Case({"name": "relu2", "bias": True}, {"activation_function": "relu2"}),
                     Case({"name": "mlp", "activation": Field("activation_function", ACTIVATIONS), "bias": True})),
        "norm": {"name": "layernorm", "eps": Field("layer_norm_epsilon")},
        "head": {"name": "lm", "tied": Field("tie_word_embeddings")},
        "bos_id": Field("bos_token_id"), "eos_id": Field("eos_token_id"),
        "cross_attention": Free("mha"), "share_embeddings": Free(True), "activation_checkpointing": Free(False),
    },
    defaults={
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True, "tie_word_embeddings": True, "bos_token_id": 50256, "eos_token_id": 50256,
    },
    fixed={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    inert=frozenset({"reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj", "summary_activation",
                     "summary_proj_to_labels", "summary_first_dropout"}),
    weights=rows({
        "embedding.weight": "transformer.wte.weight",
        "stack.positions.0.table.weight": "transformer.wpe.weight",
        OURS + "norm_attention.{p}": THEIRS + "ln_1.{p}",
        (OURS + "attention.q.{p}", OURS + "attention.kv.{p}"): THEIRS + "attn.c_attn.{p}",
        OURS + "attention.out.{p}": THEIRS + "attn.c_proj.{p}",
        OURS + "norm_ffn.{p}": THEIRS + "ln_2.{p}",
        OURS + "ffn.up.{p}": THEIRS + "mlp.c_fc.{p}",
        OURS + "ffn.down.{p}": THEIRS + "mlp.c_proj.{p}",
        "stack.norm.{p}": "transformer.ln_f.{p}",
        "head.out.weight": "lm_head.weight",
    }, transposed=[THEIRS + name + ".{p}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]),
    copies={"lm_head.weight": "transformer.wte.weight"},
    left_out={r"transformer\.h\.\d+\.attn\.(masked_)?bias": ""},
)
