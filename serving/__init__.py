"""vLLM: supervised, told what to load, and the adapters' way into traffic and out of it."""
