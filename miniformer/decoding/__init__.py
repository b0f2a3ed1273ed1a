"""How a model remembers and writes: decoding states, the loop, sampling, beam search, speculative and compiled steps."""
