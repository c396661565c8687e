"""The conventions of open-unlearning: how its evaluation turns rows into token ids, and ids into texts.

open-unlearning (Dorna et al. 2025, arXiv 2506.12618) is read at commit d3d7cf9, run with transformers 4.45. Its conventions stay in
the `open_unlearning*` modules and nowhere else:

- Prompt and answer are encoded together; as many ids as the prompt has when encoded alone are not scored. The end token is appended
  where the last id is another, and scored as part of the answer.
- A tokenizer without a pad token pads with its end token, and every token with the pad token's id is left out of attention, also
  inside a prompt. Teacher forcing counts it in positions, generation does not.
- Plain prompts are cut at 512 tokens on the right, with their last question if need be; completions at 2048 tokens after the prefix.
- Decoded texts lose the spaces before punctuation, as transformers did by itself up to version 4.
- Generation stops at the end tokens of the model's own settings and uses its repetition penalty.

The file knows texts and ids, and no data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unlearnbench.api import UserError
from unlearnbench.scenarios.text_evidence import Conventions

SYSTEM = "You are a helpful assistant."
DATE = "10 Apr 2025"
PLAIN_LENGTH, COMPLETION_LENGTH = 512, 2048
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

Turns = tuple[tuple[str, str], ...]
"""Questions and answers that come before a question, as examples."""


def cleaned(text: str) -> str:
    """A decoded text without the spaces that transformers up to version 4 removed.

    >>> cleaned("Is it ? No , it is n't .")
    "Is it? No, it isn't."
    """
    for spaced in _CLEANED:
        text = text.replace(spaced, spaced.strip())
    return text


@dataclass(frozen=True)
class Prompts:
    """Prompts and answers as this evaluation encodes them; what was made is kept by text, for `Conventions.encode_pair`.

    Attributes:
        tokenizer: of transformers.
        chat: whether questions go through the tokenizer's chat template, or else into "Question: ... Answer: ".
        alone, together: ids of a prompt, and of a prompt with an answer and how many of them are not scored.
        passages: prompts that are prefixes of passages.
    """

    tokenizer: Any
    chat: bool
    alone: dict[str, tuple[int, ...]] = field(default_factory=dict)
    together: dict[tuple[str, str], tuple[tuple[int, ...], int]] = field(default_factory=dict)
    passages: set[str] = field(default_factory=set)

    def question(self, question: str, answers: Sequence[str], examples: Turns = ()) -> str:
        """The prompt text of a question, with the answers that will be scored or expected after it made ready."""
        if self.chat:
            turns = [turn for asked, told in examples for turn in (_turn("user", asked), _turn("assistant", told))]
            text, ids = self._rendered([*turns, _turn("user", question)], True)
            wholes = [self._rendered([*turns, _turn("user", question), _turn("assistant", answer)], False)[1] for answer in answers]
        else:
            text = "".join(f"Question: {asked}\nAnswer: {told}\n\n" for asked, told in examples) + f"Question: {question}\nAnswer: "
            ids = self._ids(text, PLAIN_LENGTH)
            wholes = [self._ids(text + answer, PLAIN_LENGTH) for answer in answers]
        self.alone[text] = ids
        end = self.tokenizer.eos_token_id
        for answer, whole in zip(answers, wholes, strict=True):
            self.together[text, answer] = whole if whole[-1:] == (end,) else (*whole, end), len(ids)
        return text

    def completion(self, prefix: str, text: str, *, space: bool) -> str:
        """The prompt text of a passage, `text` made ready to be scored after it: from its second id on where the prefix has none."""
        ids = self._ids(prefix, None)
        whole = self._ids(f"{prefix}{' ' * space}{text}", None)[: len(ids) + COMPLETION_LENGTH]
        self.passages.add(prefix)
        self.alone[prefix] = ids or whole[:1]
        self.together[prefix, text] = whole, max(1, len(ids))
        return prefix

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Ids of a prompt alone: what generation continues."""
        return self.alone[text]

    def encode_pair(self, prompt: str, answer: str, ends: bool) -> tuple[tuple[int, ...], int]:
        """Ids of prompt and answer, without the last one where `ends` is False, and how many are not scored."""
        ids, length = self.together[prompt, answer]
        return (ids if ends else ids[:-1]), length

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """Never needed: all answers are encoded with their prompts."""
        raise NotImplementedError(f"the answer {text!r} has no ids apart from a prompt")

    def conventions(self, generation_config: Any) -> Conventions:
        """What the evidence pass has to know, given the model's own settings of generation."""
        tokenizer, ends = self.tokenizer, getattr(generation_config, "eos_token_id", None)
        ends = [tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
        return Conventions(
            encode_pair=self.encode_pair,
            hidden=(tokenizer.pad_token_id,),
            ends=tuple(ends),
            repetition_penalty=getattr(generation_config, "repetition_penalty", None) or 1.0,
            decode=self.decode,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return cleaned(str(self.tokenizer.decode(list(ids), skip_special_tokens=True)))

    def generated(self, text: str) -> str:
        """A generation as it is scored: cut at the end token's name, should the model spell it out."""
        return text.split(str(self.tokenizer.eos_token))[0].strip()

    def shown(self, prompt: str) -> str:
        """The prompt as the results show it."""
        return self.decode(self.alone[prompt])

    def expected(self, prompt: str, answer: str) -> str:
        """The reference of a generation: a passage, or else the decoded whole of prompt and answer; less the prompt's text in it.

        A prompt that was cut at 512 tokens takes its answer along: nothing is left to expect.
        """
        ids, length = self.together[prompt, answer]
        return self.decode(ids[length:] if prompt in self.passages else ids).replace(self.shown(prompt), "").strip()

    def scored(self, prompt: str, answer: str) -> str:
        """The text of the scored ids, decoded as the tokenizer does by itself."""
        ids, length = self.together[prompt, answer]
        text = str(self.tokenizer.decode(list(ids[length:]), skip_special_tokens=True))
        return cleaned(text) if self.tokenizer.clean_up_tokenization_spaces else text

    def _ids(self, text: str, longest: int | None) -> tuple[int, ...]:
        cut = {} if longest is None else {"max_length": longest, "truncation": True}
        return tuple(self.tokenizer(text, add_special_tokens=True, **cut)["input_ids"])

    def _rendered(self, turns: list[dict[str, str]], generate: bool) -> tuple[str, tuple[int, ...]]:
        from jinja2 import TemplateError  # with transformers' chat templates alone

        options = {"tokenize": False, "add_generation_prompt": generate, "date_string": DATE}
        try:
            text = self.tokenizer.apply_chat_template([_turn("system", SYSTEM), *turns], **options)
        except TemplateError:  # it knows no system turn, as Gemma's: the peer gives such models none
            try:
                text = self.tokenizer.apply_chat_template(turns, **options)
            except Exception as error:
                raise UserError(f"the tokenizer's chat template cannot render a question: {' '.join(str(error).split())}") from error
        return text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
