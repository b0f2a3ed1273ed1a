"""Llama 1 to 3 with its language-modelling head (Touvron et al. 2023, arXiv:2302.13971; Grattafiori 2024, arXiv:2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .architecture import ACTIVATIONS, Architecture, Fields
from .pattern import Case, Field, Free, OneOf, Unsupported
from .weights import rows

OURS, THEIRS = "stack.blocks.{i}.", "model.layers.{i}."
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "factor": 1.0, "original_max_position_embeddings": None,
        "partial_rotary_factor": 1.0, "attention_factor": None, "mscale": None, "mscale_all_dim": None, "beta_fast": 32,
        "beta_slow": 1, "truncate": True, "low_freq_factor": 1, "high_freq_factor": 4}
"""The fields that `rope_parameters` may have, with the value that each has if it is left out."""
WRITTEN: Mapping[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}
"""The fields of `rope_parameters` that an export writes, by the type of rope."""


def read(fields: Fields, weights: Mapping[str, Tensor]) -> Fields:
    """Read the rope from where a config.json has it: `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    source = fields["rope_parameters"] or fields["rope_scaling"] or {}
    if not isinstance(source, Mapping):
        raise Unsupported("rope_parameters", source, ["an object", None])
    rope_fields: dict[str, Any] = {name: value for name, value in source.items() if value is not None}
    kind = rope_fields.pop("type", None)
    if rope_fields.setdefault("rope_type", kind or "default") not in WRITTEN:
        raise Unsupported("rope_parameters.rope_type", rope_fields["rope_type"], list(WRITTEN))
    if fields["rope_theta"] is not None:
        rope_fields.setdefault("rope_theta", fields["rope_theta"])
    if unknown := [name for name in rope_fields if name not in ROPE]:
        raise Unsupported(f"rope_parameters.{unknown[0]}", rope_fields[unknown[0]], list(ROPE))
    rope = {**ROPE, **rope_fields}
    for name in ("factor", "rope_theta", "original_max_position_embeddings"):
        if not isinstance(rope[name], (int, float, type(ROPE[name]))):
            raise Unsupported(f"rope_parameters.{name}", rope[name], ["a number"])
    length, factor = fields["max_position_embeddings"], rope["factor"]
    if rope["original_max_position_embeddings"] is not None and rope["original_max_position_embeddings"] * factor == length:
        rope["original_max_position_embeddings"] = None  # the default of miniformer
    return {**fields, **{f"rope_parameters.{name}": value for name, value in rope.items()}}


def write(fields: Fields) -> Fields:
    """Write the rope so that all versions of transformers read it."""
    rope_fields: dict[str, Any] = {name: fields.get(f"rope_parameters.{name}") for name in ROPE}
    other_fields = {name: value for name, value in fields.items() if not name.startswith("rope_parameters.")}
    scaling = {name: rope_fields[name] for name in ("rope_type", *WRITTEN[rope_fields["rope_type"]])}
    if scaling.get("original_max_position_embeddings", 0) is None:
        length = other_fields["max_position_embeddings"] / rope_fields["factor"]
        if length != int(length):
            raise Unsupported("position.original_length", length, ["a whole number of tokens"])
        scaling["original_max_position_embeddings"] = int(length)
    return {**other_fields, "rope_theta": rope_fields["rope_theta"], "rope_scaling": scaling if len(scaling) > 1 else None}


def rope(kind: str, scaling: str, required: Mapping[str, Any], **options: Any) -> Case:
    """The case of one way to scale rotary positions; other fields of `rope_parameters` must have the values in `required`."""
    where = {"rope_type": kind, "partial_rotary_factor": 1.0, **required}
    return Case({"name": "rope", "base": Field("rope_parameters.rope_theta"), "scaling": scaling, **options},
                {f"rope_parameters.{name}": value for name, value in where.items()})


FACTOR = Field("rope_parameters.factor")
ORIGINAL = Field("rope_parameters.original_max_position_embeddings")

LLAMA = Architecture(
    family="Llama", name="LlamaForCausalLM", model_type="llama", base="model.", task="language-modeling",
    read=read, write=write,
    spec={
        "vocab_size": Field("vocab_size"), "d_model": Field("hidden_size"), "n_heads": Field("num_attention_heads"),
        "n_layers": Field("num_hidden_layers"), "d_ff": Field("intermediate_size"),
        "max_seq_len": Field("max_position_embeddings"), "dropout": Free(0.0), "causal": True,
        "attention": {"name": "mha", "n_kv_heads": Field("num_key_value_heads"), "d_head": Field("head_dim"),
                      "bias": Field("attention_bias"), "dropout": Field("attention_dropout"), "kernel": Free("auto")},
        "position": OneOf(
            rope("default", "none", {}, original_length=Free(None)),
            rope("linear", "linear", {}, factor=FACTOR, original_length=Free(None)),
            rope("yarn", "yarn", {"beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None, "mscale": None,
                                  "mscale_all_dim": None}, factor=FACTOR, original_length=ORIGINAL),
            rope("llama3", "llama3", {"low_freq_factor": 1, "high_freq_factor": 4}, factor=FACTOR, original_length=ORIGINAL)),
        "ffn": OneOf(Case({"name": "swiglu", "bias": Field("mlp_bias")}, {"hidden_act": "silu"}),
                     Case({"name": "geglu", "bias": Field("mlp_bias")}, {"hidden_act": "gelu"}),
                     Case({"name": "glu", "activation": Field("hidden_act", ACTIVATIONS), "bias": Field("mlp_bias")})),
        "norm": {"name": "rmsnorm", "eps": Field("rms_norm_eps")},
        "head": {"name": "lm", "tied": Field("tie_word_embeddings")},
        "bos_id": Field("bos_token_id"), "eos_id": Field("eos_token_id"),
        "cross_attention": Free("mha"), "share_embeddings": Free(True), "activation_checkpointing": Free(False),
    },
    defaults={
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "attention_bias": False, "attention_dropout": 0.0,
        "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": None, "rope_scaling": None, "rope_theta": None,
    },
    fixed={"pretraining_tp": 1},
    weights=rows({
        "embedding.weight": "model.embed_tokens.weight",
        OURS + "norm_attention.weight": THEIRS + "input_layernorm.weight",
        OURS + "attention.q.{p}": THEIRS + "self_attn.q_proj.{p}",
        OURS + "attention.kv.{p}": (THEIRS + "self_attn.k_proj.{p}", THEIRS + "self_attn.v_proj.{p}"),
        OURS + "attention.out.{p}": THEIRS + "self_attn.o_proj.{p}",
        OURS + "norm_ffn.weight": THEIRS + "post_attention_layernorm.weight",
        OURS + "ffn.gate_up.{p}": (THEIRS + "mlp.gate_proj.{p}", THEIRS + "mlp.up_proj.{p}"),
        OURS + "ffn.down.{p}": THEIRS + "mlp.down_proj.{p}",
        "stack.norm.weight": "model.norm.weight",
        "head.out.weight": "lm_head.weight",
    }),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    left_out={r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": ""},
)
