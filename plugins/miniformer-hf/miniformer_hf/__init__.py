"""Imports checkpoints of transformers into miniformer, and exports them: GPT-2, Llama, BERT and T5.

transformers itself is not needed, since `config.json`, `*.safetensors` and `tokenizer.json` are plain files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
