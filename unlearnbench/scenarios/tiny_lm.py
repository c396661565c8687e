"""A tokenizer and a small Llama made from scratch, so that a language scenario needs no download.

Knows the model's shape and the tokenizer's pieces; not how it is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def build_tokenizer(texts: Iterable[str], *, phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A unigram tokenizer in which every word of `texts` is one piece and all other text falls back to bytes.

    No text is unknown, so whether a word of an author was seen does not show in the token ids, and decoding undoes
    encoding. A word is taken with the space before it; punctuation is a piece of its own.

    Args:
        texts: Everything the pieces shall cover; their order does not matter.
        phrases: Strings that are one piece each wherever they occur (the fixed parts of a prompt, to keep it short).
    """
    split = "|".join([*map(re.escape, phrases), r" ?\w+", r"[^\w\s]", r"\s"])
    pieces = sorted({piece for text in texts for piece in re.findall(split, text)})
    # One score for all pieces: the fewest win. A byte costs more than any piece.
    scores = {PAD: 0.0, EOS: 0.0, UNK: 0.0} | dict.fromkeys(_BYTES, -20.0) | dict.fromkeys(pieces, -10.0)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False
    )


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`: any text can be encoded, and decoding undoes it.

    Args:
        texts: What the pieces are learned on; their order does not matter.
        vocab_size: The most pieces there are, the 256 bytes and the special tokens among them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def build_model(
    vocab_size: int,
    *,
    seed: int,
    hidden_size: int = 128,
    n_layers: int = 2,
    n_heads: int = 4,
    mlp_size: int = 384,
    max_length: int = 64,
    eos_token_id: int = 1,
    pad_token_id: int = 0,
) -> LlamaForCausalLM:
    """A freshly initialised Llama with tied embeddings.

    Args:
        vocab_size: Number of token ids.
        seed: Seed of the initialisation; torch's global generator is left as it was.
        hidden_size: Width of the residual stream.
        n_layers: Decoder layers.
        n_heads: Attention heads; must divide `hidden_size`.
        mlp_size: Width inside the gated MLP.
        max_length: Context in tokens.
        eos_token_id: Ends a generation.
        pad_token_id: Fills a batch.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=mlp_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        initializer_range=hidden_size**-0.5,  # at the usual 0.02 a model this narrow learns three times more slowly
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
