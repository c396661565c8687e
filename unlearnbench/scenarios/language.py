"""What language scenarios share beyond texts: rows as model input, the loss, and rows as the evidence pass wants them.

Knows how examples become batches for any causal LM; knows no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from unlearnbench import losses
from unlearnbench.api import Batch, Data, UserError
from unlearnbench.causal import answer_logits
from unlearnbench.scenarios.templates import Template
from unlearnbench.scenarios.text import Encoded, Example, collate, join
from unlearnbench.scenarios.text_evidence import Rows


@dataclass(frozen=True)
class Encoder:
    """Texts to token ids under one tokenizer and template; each pair is tokenised once.

    Attributes:
        tokenizer: one of transformers', with an end token. Its pad token may be that one or missing: masks come from lengths.
        template: how questions become prompts.
        max_length: the model's context in tokens; None where nothing bounds it.
        ends: whether the end token closes every answer; the texts of a corpus end in none.
        base: the scenario's own template, where this is another: its prompts are tokenised alike by all encoders of a scenario.
    """

    tokenizer: Any
    template: Template
    max_length: int | None = None
    ends: bool = True
    base: Template | None = None
    kept: dict[tuple[str, str], Encoded] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, which ends every answer; set its eos_token")

    def using(self, template: Template, *, ends: bool = True) -> Encoder:
        """The same tokenizer with another template."""
        return replace(self, template=template, ends=ends, base=self.base or self.template, kept={})

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> Batch:
        """A padded batch out of (prompt text, answer text) pairs; "prompts" keeps the texts that steering models see."""
        batch: Batch = dict(collate([self.pair(prompt, answer) for prompt, answer in pairs], self.pad_id))
        batch["prompts"] = [prompt for prompt, _ in pairs]
        return batch

    @property
    def pad_id(self) -> int:
        """What fills a batch: the pad token, or the end token where there is none."""
        pad: int | None = self.tokenizer.pad_token_id
        end: int = self.tokenizer.eos_token_id
        return end if pad is None else pad

    def pair(self, prompt: str, answer: str) -> Encoded:
        """A prompt and its answer as one sequence.

        Raises:
            UserError: one of them has no tokens, or together they are longer than the context.
        """
        if (prompt, answer) not in self.kept:
            self.kept[prompt, answer] = join(
                self.prompt_ids(prompt),
                self.answer_ids(answer),
                end=self.tokenizer.eos_token_id if self.ends else None,
                texts=(prompt, answer),
                max_length=self.max_length,
            )
        return self.kept[prompt, answer]

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens included.

        No prompt at all is the token that begins a sequence, or, of a tokenizer without one, the end token, behind which the next
        text begins.
        """
        if not text:
            begin = self.tokenizer.bos_token_id
            return [self.tokenizer.eos_token_id if begin is None else begin]
        opening = (self.base or self.template).opening
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=opening is None or not text.startswith(opening))
        return ids

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer, without the end token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


class TextData(Data):
    """Examples as rows: a batch holds the question's prompt and the answer of each."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder) -> None:
        self.examples = tuple(examples)
        self.encoder = encoder
        self.ids = tuple(example.id for example in self.examples)
        self.clusters = tuple(example.cluster for example in self.examples)

    def take(self, index: Sequence[int]) -> TextData:
        """See `Data.take`."""
        return TextData([self.examples[i] for i in index], self.encoder)

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """See `Data.batch`: input_ids, attention_mask, labels [B, T] and prompts."""
        template = self.encoder.template
        chosen = [self.examples[int(i)] for i in index]
        return self.encoder.pairs([(template.prompt_text(row.question), template.answer_text(row.answer)) for row in chosen])


def text_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-likelihood per answer token of each row [B], in nats, the model conditioned on the prompts."""
    return losses.example_nll(*answer_logits(model, batch))


def rows_of(data: TextData, rewrite: Callable[[Example], Example] | None = None) -> Rows:
    """A split's rows as texts for the evidence pass, each example changed by a prompt attack's `rewrite` if there is one.

    A kind of question or answer that one of the rows lacks is not there.
    """
    template = data.encoder.template
    examples = data.examples if rewrite is None else tuple(rewrite(example) for example in data.examples)
    prompts = {"question": tuple(template.prompt_text(row.question) for row in examples)}
    answers: dict[str, tuple[tuple[str, ...], ...]] = {"answer": tuple((template.answer_text(row.answer),) for row in examples)}
    if all(row.paraphrased_question for row in examples):
        prompts["paraphrased_question"] = tuple(template.prompt_text(row.paraphrased_question) for row in examples)
    if all(row.paraphrased_answer for row in examples):
        answers["paraphrased_answer"] = tuple((template.answer_text(row.paraphrased_answer),) for row in examples)
    if all(row.perturbed_answer for row in examples):
        answers["perturbed_answer"] = tuple(tuple(map(template.answer_text, row.perturbed_answer)) for row in examples)
    return Rows(ids=data.ids, clusters=data.clusters, prompts=prompts, answers=answers, ends=data.encoder.ends)
