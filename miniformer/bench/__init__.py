"""Speed and memory of models side by side: contestants made of specs, the processes that measure them, their rounds."""
