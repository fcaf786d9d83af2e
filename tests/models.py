"""Tiny random models, made on the spot: a Llama of 100,000 weights with a tokenizer and a chat template of its own."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

#: Written like SmolLM2's: a system message is put in front if there is none, and tools are not rendered.
CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "You are a helpful AI assistant. Answer with one JSON object and nothing else.",
    "I was charged twice for my laptop, order A-4821. Where is my parcel? It has not arrived, and I want my money back.",
    '{"category":"billing","product":"phone","priority":"high","sentiment":"neutral","order":"A-4821"}',
    '{"name": "find_order", "arguments": {"order": "A-4821"}}',
]


def tiny_llama(
    folder: Path, *, template: str = CHATML, seed: int = 0, hidden: int = 64, layers: int = 2, positions: int = 1024
) -> Path:
    """A model folder as `save_pretrained` writes it: float32, 4 heads and 2 key heads. About a second."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,  # an embedding of zeros: must not be the end of turn's, which is to be learned
        tie_word_embeddings=True,
        initializer_range=0.2,  # so wide that the frozen embeddings can be told apart and answers be learned
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder
