"""The real model and the real vLLM: few tests, strong ones."""
