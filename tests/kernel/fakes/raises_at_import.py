raise RuntimeError("the wrong CUDA")
