"""From files to examples: JSONL, the embedded corpus, tokenizers, splits, packing, batch order."""
