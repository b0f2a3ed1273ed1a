"""BERT as an encoder, with three of its heads (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from .architecture import ACTIVATIONS, CHOICE, REGRESSION, Architecture
from .bert_parts import Activation
from .pattern import Case, Field, Free, OneOf
from .weights import Table, rows

OURS, THEIRS = "stack.blocks.{i}.", "bert.encoder.layer.{i}."
EPS = Field("layer_norm_eps")
SPEC: Mapping[str, Any] = {
    "vocab_size": Field("vocab_size"), "d_model": Field("hidden_size"), "n_heads": Field("num_attention_heads"),
    "n_layers": Field("num_hidden_layers"), "d_ff": Field("intermediate_size"), "max_seq_len": Field("max_position_embeddings"),
    "dropout": Field("hidden_dropout_prob"), "norm_placement": "post",
    "attention": {"name": "mha", "n_kv_heads": OneOf(Case(None), Case(Field("num_attention_heads"))), "bias": True,
                  "dropout": Field("attention_probs_dropout_prob"), "kernel": Free("auto")},
    "position": {"name": "miniformer-hf:bert-embeddings", "n_segments": Field("type_vocab_size"), "eps": EPS},
    "ffn": OneOf(Case({"name": "gelu", "bias": True}, {"hidden_act": "gelu"}),
                 Case({"name": "relu", "bias": True}, {"hidden_act": "relu"}),
                 Case({"name": "mlp", "activation": Field("hidden_act", ACTIVATIONS), "bias": True})),
    "norm": {"name": "layernorm", "eps": EPS},
    "bos_id": Field("bos_token_id"), "eos_id": Field("eos_token_id"),
    "cross_attention": Free("mha"), "share_embeddings": Free(True), "activation_checkpointing": Free(False),
}
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "bos_token_id": None, "eos_token_id": None,
}
FIXED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute", "tie_word_embeddings": True}
TRUNK: Table = {
    "embedding.weight": "bert.embeddings.word_embeddings.weight",
    "stack.positions.0.positions.weight": "bert.embeddings.position_embeddings.weight",
    "stack.positions.0.segments.weight": "bert.embeddings.token_type_embeddings.weight",
    "stack.positions.0.norm.{p}": "bert.embeddings.LayerNorm.{p}",
    OURS + "attention.q.{p}": THEIRS + "attention.self.query.{p}",
    OURS + "attention.kv.{p}": (THEIRS + "attention.self.key.{p}", THEIRS + "attention.self.value.{p}"),
    OURS + "attention.out.{p}": THEIRS + "attention.output.dense.{p}",
    OURS + "norm_attention.{p}": THEIRS + "attention.output.LayerNorm.{p}",
    OURS + "ffn.up.{p}": THEIRS + "intermediate.dense.{p}",
    OURS + "ffn.down.{p}": THEIRS + "output.dense.{p}",
    OURS + "norm_ffn.{p}": THEIRS + "output.LayerNorm.{p}",
}
POSITIONS = {r"bert\.embeddings\.position_ids": ""}
POOLER = {r"bert\.pooler\.dense\.(weight|bias)": "the pooler, which this head does not read"}


def bert(name: str, task: str, head: Mapping[str, Any], weights: Table, **more: Any) -> Architecture:
    """BERT with a head."""
    spec = {**SPEC, "head": head, **({"output_dim": Field("num_labels")} if more.get("labels") else {})}
    return Architecture(family=f"BERT ({name})", name=name, model_type="bert", base="bert.", task=task, spec=spec,
                        defaults=DEFAULTS, fixed=FIXED, inert=frozenset({"classifier_dropout"}),
                        weights=rows({**TRUNK, **weights}), **more)


MASKED = bert(
    "BertForMaskedLM", "masked-lm",
    {"name": "miniformer-hf:bert-mlm", "eps": EPS,
     "activation": Field("hidden_act", {name: ours for name, ours in ACTIVATIONS.items()
                                        if ours in get_args(Activation)})},
    {"head.dense.{p}": "cls.predictions.transform.dense.{p}", "head.norm.{p}": "cls.predictions.transform.LayerNorm.{p}",
     "head.out.bias": "cls.predictions.bias"},
    copies={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"},
    left_out={**POSITIONS, **POOLER, r"cls\.seq_relationship\.(weight|bias)": "the head that compares two sentences"})

SEQUENCE = bert(
    "BertForSequenceClassification", "classification", {"name": "miniformer-hf:bert-pooled"},
    {"head.pooler.{p}": "bert.pooler.dense.{p}", "head.out.{p}": "classifier.{p}"}, labels=True, left_out=POSITIONS,
    problems={CHOICE: "classification", "multi_label_classification": "multilabel", REGRESSION: "regression"})

TOKENS = bert(
    "BertForTokenClassification", "token-classification", {"name": "token-classification"},
    {"head.out.{p}": "classifier.{p}"}, labels=True, left_out={**POSITIONS, **POOLER})
