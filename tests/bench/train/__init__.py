"""Training beside TRL's SFTTrainer: the same rows, LoRA, batches and steps. `python -m tests.bench.train`."""
