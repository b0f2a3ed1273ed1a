"""Faults in the fast ways to compute: attention kernels, linear layers, the loss of a large vocabulary."""

from ..fault import Fault

KERNELS, ENTROPY = "tests/ops/test_attention_kernels.py", "tests/ops/test_cross_entropy.py"

FAULTS = (
    Fault("scores-are-scaled-too-little", "miniformer/ops/attention_kernels.py", "q_BHTE.shape[-1] ** -0.5",
          "q_BHTE.shape[-1] ** -0.25", KERNELS, "attention is sharper with one kernel than with another"),
    Fault("sdpa-forgets-the-scale", "miniformer/ops/attention_kernels.py", "scale=scale, enable_gqa=shares_heads",
          "enable_gqa=shares_heads", KERNELS, "the option scale does nothing with one kernel"),
    Fault("long-rows-have-no-dropout", "miniformer/ops/attention_kernels.py", "    if dropout:",
          "    if dropout and q_BHTE.shape[2] <= FEW_QUERIES:", KERNELS, "dropout is off wherever a row is long"),
    Fault("flex-hides-the-token-itself", "miniformer/ops/attention_kernels.py", "lambda b, h, t, s: t >= s",
          "lambda b, h, t, s: t > s", KERNELS, "a causal mask that is off by one in one kernel"),
    Fault("a-soft-cap-is-not-divided-by", "miniformer/ops/attention_kernels.py", "torch.tanh(scores_BHTS / softcap)",
          "torch.tanh(scores_BHTS)", KERNELS, "Gemma's attention is computed wrongly"),
    Fault("a-slower-kernel-is-silent", "miniformer/ops/attention_kernels.py", "    logger.warning(line)\n", "    pass\n",
          KERNELS, "nobody learns why a model is slow"),
    Fault("blocks-see-one-token-ahead", "miniformer/ops/blockwise.py", ".triu_(start + 1)", ".triu_(start + 2)", KERNELS,
          "a model cheats in training and writes nonsense"),
    Fault("blocks-lose-their-last-key", "miniformer/ops/blockwise.py", "int(seen[-1]) + 1", "int(seen[-1])", KERNELS,
          "a packed token does not see itself"),
    Fault("gradients-of-keys-are-not-scaled", "miniformer/ops/blockwise.py", "q_NnE), alpha=scale)", "q_NnE))", KERNELS,
          "training on a CPU goes another way than on a GPU"),
    Fault("a-changed-matrix-is-not-packed-again", "miniformer/ops/linear.py", " or entry[0] != values", "",
          "tests/ops/test_linear.py", "a compiled engine goes on with the weights of before"),
    Fault("a-bias-gets-the-mean-gradient", "miniformer/ops/linear.py", "grad_y_RO.sum(dim=0)", "grad_y_RO.mean(dim=0)",
          "tests/ops/test_linear.py", "biases are hardly trained on a CPU"),
    Fault("what-is-not-asked-for-is-a-loss", "miniformer/ops/cross_entropy.py", "(block_targets_n >= 0)",
          "(block_targets_n >= -1)", ENTROPY, "padding is trained on"),
    Fault("the-loss-passes-no-factor-on", "miniformer/ops/cross_entropy.py", "grad.mul_(grad_loss)", "grad", ENTROPY,
          "gradients are not divided by the weight of the batch"),
    Fault("the-matrix-learns-from-the-last-part", "miniformer/ops/cross_entropy.py", "grad_weight_VD[class_part] += ",
          "grad_weight_VD[class_part] = ", ENTROPY, "of a large batch only the last tokens train the embedding"),
)
