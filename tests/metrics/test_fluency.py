"""Fluency of generations: by entropy, and by a tiny classifier of our own."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from unlearnbench.answers import ngram_entropy
from unlearnbench.api import Audit, Need, UserError
from unlearnbench.evidence import Evidence
from unlearnbench.metrics.fluency import Fluency, class_probability

AUDIT = Audit(originals=(), oracles=())
TEXTS = ("one two three two one", "", "two two three " * 30)


def evidence() -> Evidence:
    ids = {"retain": ("a", "b", "c")}
    need = Need(what="generation", split="retain")
    return Evidence(ids=ids, clusters=ids, texts={need: TEXTS}, references={need: TEXTS})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    raw = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "one": 2, "two": 3, "three": 4}, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", model_max_length=12).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
        max_position_embeddings=16,
        pad_token_id=1,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_entropy_by_default() -> None:
    made = Fluency(split="retain")
    assert made.wants(SimpleNamespace(modality="language", task="generate")) == (Need(what="generation", split="retain"),)
    assert made.measure(evidence(), AUDIT) == {row: ngram_entropy(text) for row, text in zip("abc", TEXTS, strict=True)}
    assert (made.side, made.headline, made.curve, made.clean_class) == ("diagnostic", False, False, 0)
    assert made.bounds == (0.0, sys.float_info.max)


def test_a_classifier_gives_the_probability_of_its_clean_class(classifier: Path) -> None:
    texts = [text for text in TEXTS if text]
    model = BertForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():  # one by one, without padding, cut at the tokenizer's 12 tokens
        ids = [torch.tensor([[2, 3, 4, 3, 2]]), torch.tensor([[3, 3, 4] * 4])]
        expected = [model(input_ids=one).logits.softmax(-1)[0, 2].item() for one in ids]
    assert class_probability(classifier, texts, 2) == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 0.05
    seen = evidence()
    need = Need(what="generation", split="retain")
    ids_of = {"retain": ("a", "c")}
    two = Evidence(ids=ids_of, clusters=ids_of, texts={need: (TEXTS[0], TEXTS[2])}, references=seen.references)
    found = Fluency(split="retain", classifier=str(classifier), clean_class=2).measure(two, AUDIT)
    assert found == {"a": pytest.approx(expected[0], rel=1e-4), "c": pytest.approx(expected[1], rel=1e-4)}


def test_many_texts_come_back_in_order(classifier: Path) -> None:
    texts = [" ".join(["one", "two", "three"][: 1 + i % 3]) for i in range(70)]
    found = class_probability(classifier, texts, 0)
    assert (found.shape, found.dtype) == ((70,), "float64")
    assert found == pytest.approx([class_probability(classifier, texts[i % 3 : i % 3 + 1], 0)[0] for i in range(70)], rel=1e-4)


def test_bad_classifiers_are_named(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is no folder"):
        class_probability(tmp_path / "none", ["one"], 0)
    with pytest.raises(UserError, match=r"clean_class is 3; .* classes 0 to 2"):
        class_probability(classifier, ["one"], 3)
