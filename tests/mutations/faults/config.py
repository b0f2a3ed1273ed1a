"""Faults in the specs of models and in the counting of what they cost."""

from ..fault import Fault

CONFIG = "tests/config/test_model_config.py"

FAULTS = (
    Fault("the-feed-forward-is-twice-as-wide", "miniformer/config/model_config.py", "= 4 * min(", "= 2 * min(", CONFIG,
          "a model has fewer parameters than its documentation says"),
    Fault("the-default-head-is-the-other", "miniformer/config/model_config.py", 'fields.get("output_dim") is None else',
          'fields.get("output_dim") is not None else', CONFIG, "a classifier gets the head of a language model"),
    Fault("pre-norm-is-post", "miniformer/config/shorthands.py", '"pre" if pre_norm else "post"',
          '"post" if pre_norm else "pre"', CONFIG, "an old config means the opposite"),
    Fault("a-pattern-of-layers-is-ignored", "miniformer/config/model_config.py", "getattr(entry, slot) or ", "", CONFIG,
          "layers that a spec tells apart are all alike"),
    Fault("a-layer-is-not-repeated", "miniformer/config/model_config.py", " for _ in range(repeat)]", "]", CONFIG,
          "a pattern gives fewer layers than it says"),
    Fault("a-shorthand-wins-over-a-name", "miniformer/config/shorthands.py", "slots.setdefault(target, spec)",
          "slots.update({target: spec})", CONFIG, "rope-mha replaces the position that a user names"),
    Fault("what-looks-back-serves-an-encoder", "miniformer/config/model_config.py", "mixer.causal_only and not self.causal",
          "mixer.causal_only and self.causal", CONFIG, "an encoder is trained whose tokens see nothing later"),
    Fault("an-attention-may-ignore-positions", "miniformer/config/model_config.py",
          'encoding.hooks() - mixer.applies - {"embed"}', "set()", CONFIG,
          "a model is trained without knowing the order of words"),
    Fault("wider-heads-have-the-model-s-encoding", "miniformer/config/model_config.py",
          " if width is None else width * self.n_heads,", ",",
          "tests/model/test_block.py::test_heads_of_another_width_are_served_by_an_encoding_of_their_width",
          "heads of another width are rotated in part"),
    Fault("shared-parameters-count-twice", "miniformer/config/counting.py", "for parameter in self.model.parameters())",
          "for _, parameter in self.model.named_parameters(remove_duplicate=False))", "tests/config/test_counting.py",
          "inspect says more parameters than there are"),
    Fault("arithmetic-counts-half", "miniformer/config/counting.py", "get_total_flops()) // tokens",
          "get_total_flops()) // (2 * tokens)", "tests/config/test_counting.py", "inspect and bench say half of the FLOPs"),
    Fault("a-source-is-not-counted", "miniformer/config/counting.py",
          "length if batch.source is None else length + batch.source.inputs.shape[1]", "length",
          "tests/config/test_counting.py", "an encoder-decoder costs more a token than it does"),
    Fault("parameters-count-as-activations", "miniformer/config/counting.py", " if key not in own", "",
          "tests/config/test_counting.py::test_activations_are_of_the_rows_alone_so_twice_the_rows_keep_twice_as_much",
          "inspect says that a step keeps more than it does"),
    Fault("every-pair-can-be", "miniformer/config/matrix.py", "return str(error)", 'return ""',
          "tests/config/test_matrix.py", "list-components --matrix offers what cannot be built"),
)
