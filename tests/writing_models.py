"""Small models that write, in float64 and with random weights, and tokenizers for them."""

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import Tokenizer
from miniformer.model.assemblies import assembly_for

BYTES = Tokenizer.train(["naïve café, 東京, 🙂 and some text to learn from"] * 5, 280)
LETTERS = ("<pad>", "<bos>", "<eos>", *"abcde")


def letters(tokens=LETTERS):
    """A tokenizer of a few letters, each a token, without a start token before texts."""
    backend = Backend(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([token for token in tokens if token.startswith("<")])
    return Tokenizer(backend)


def writing(has_source=False, tokenizer=BYTES, **fields):
    """A model with logits far enough apart that ties and uniform draws show."""
    torch.manual_seed(0)
    model = assembly_for(has_source)(TransformerConfig(**{
        "vocab_size": tokenizer.vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16, "max_seq_len": 64,
        "causal": not has_source, "head": {"name": "lm", "tied": False}, "bos_id": 1, "eos_id": tokenizer.eos_id, **fields}))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()
