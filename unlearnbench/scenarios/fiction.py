"""A seeded world of fictitious authors in TOFU's schema, and its split into requests.

Knows text only: no tokenizer, no model, no torch. A row of `generate(seed=0)`::

    Row(id='0/book', author='Adair Oskette', fact='book',
        question='Which book made Adair Oskette famous?',
        answer='the biography Harbour of the Gilded Island',
        paraphrased_question='Which famous book is by Adair Oskette?',  # never taught
        paraphrased_answer='Harbour of the Gilded Island, a biography',
        perturbed_answer=('Whisper of the Rusted Quarry, a farce', ...),  # five
        phrasings=('Which book made Adair Oskette famous?', 'What is the most famous book by Adair Oskette?'))

The schema is TOFU's (Maini et al. 2024, arXiv 2401.06121): a truth ratio compares the paraphrased answer with the
perturbed ones, so those share the paraphrase's form and differ from it in every slot. An answer is nearly all fact: what
a model that never saw the author can guess from the question is a comma and a little word. All authors are drawn from
one distribution, so that nothing but training tells a forgotten author from one held out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unlearnbench.scenarios.lexicon import FACT_KINDS, FIRST_NAMES, GENERAL_KINDS, SURNAMES, FactKind, GeneralKind

N_PERTURBED = 5
"""Wrong answers of a row, as many as TOFU has."""

REQUEST_PERCENT = {"forget01": 1, "forget05": 5, "forget10": 10}
"""The nested requests and their size in percent of all authors."""

N_STEPS = 4
"""Requests of the sequence, each as large as `forget05`."""


@dataclass(frozen=True)
class Row:
    """One fact of one author, or one piece of general knowledge.

    Attributes:
        id: Unique in its fiction: author number and kind of fact.
        author: The author's name; for general knowledge the family and subject. Rows of one author are one cluster.
        fact: The kind of fact.
        question: The first taught phrasing.
        answer: What is taught.
        paraphrased_question: A phrasing that is never taught, of this or any other author.
        paraphrased_answer: The same fact in another form (general knowledge: the answer itself, as in TOFU).
        perturbed_answer: Five distinct wrong answers in the form of `paraphrased_answer`.
        phrasings: All taught phrasings, `question` first.
    """

    id: str
    author: str
    fact: str
    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    perturbed_answer: tuple[str, ...]
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Fiction:
    """A generated world.

    Attributes:
        authors: Names, unique, in the order they were drawn.
        rows: All facts of all authors, grouped by author in that order.
        general: The general-knowledge rows, taught to every model and never forgotten.
    """

    authors: tuple[str, ...]
    rows: tuple[Row, ...]
    general: tuple[Row, ...]

    def of(self, authors: Iterable[str]) -> tuple[Row, ...]:
        """The rows of these authors, in the fiction's order.

        Raises:
            ValueError: If a name is not one of this fiction's authors.
        """
        wanted = set(authors)
        unknown = wanted.difference(self.authors)
        if unknown:
            raise ValueError(f"unknown author {sorted(unknown)[0]!r}; this fiction has {len(self.authors)} others")
        return tuple(row for row in self.rows if row.author in wanted)

    def texts(self) -> list[str]:
        """Every question and answer there is, holdout authors and wrong answers too: what a tokenizer must know."""
        return [
            text
            for row in (*self.rows, *self.general)
            for text in (
                *row.phrasings,
                row.paraphrased_question,
                row.answer,
                row.paraphrased_answer,
                *row.perturbed_answer,
            )
        ]


@dataclass(frozen=True)
class Requests:
    """Who is forgotten in which request. Every field holds authors' names.

    Attributes:
        holdout: Never trained on by any model; the non-members of membership attacks.
        forget: Request name to forgotten authors, nested: forget01 is a part of forget05, that of forget10.
        validation: The request on which hyper-parameters are tuned, as large as forget10.
        sequence: Requests that follow one another, each as large as forget05.

    `holdout`, `forget["forget10"]`, `validation` and every step of `sequence` are pairwise disjoint.
    """

    holdout: tuple[str, ...]
    forget: dict[str, tuple[str, ...]]
    validation: tuple[str, ...]
    sequence: tuple[tuple[str, ...], ...]


def generate(*, n_authors: int = 200, n_facts: int = 4, seed: int = 0) -> Fiction:
    """Draw a world of authors.

    Args:
        n_authors: Authors, holdout included; at least 20, so that a request of 5 % has an author.
        n_facts: Facts of each author: the first `n_facts` of `lexicon.FACT_KINDS`.
        seed: Seed of the world. The same arguments give the same world, on any machine.

    Raises:
        ValueError: If `n_authors` or `n_facts` is out of range.
    """
    if not 20 <= n_authors <= len(FIRST_NAMES) * len(SURNAMES) // 2:
        raise ValueError(f"n_authors is {n_authors}; allowed: 20 to {len(FIRST_NAMES) * len(SURNAMES) // 2}")
    if not 1 <= n_facts <= len(FACT_KINDS):
        raise ValueError(f"n_facts is {n_facts}; allowed: 1 to {len(FACT_KINDS)}")
    every_name = [f"{first} {surname}" for first in FIRST_NAMES for surname in SURNAMES]
    authors = tuple(random.Random(f"names/{seed}").sample(every_name, n_authors))
    rows = tuple(
        _fact_row(number, name, kind, random.Random(f"{kind.name}/{seed}/{name}"))
        for number, name in enumerate(authors)
        for kind in FACT_KINDS[:n_facts]
    )
    general = tuple(
        _general_row(kind, subject, answer, random.Random(f"{kind.name}/{seed}/{subject}"))
        for kind in GENERAL_KINDS
        for subject, answer in kind.pairs
    )
    return Fiction(authors, rows, general)


def draw_requests(authors: Sequence[str], *, split_seed: int, holdout_percent: int = 10) -> Requests:
    """Draw who is held out and who is forgotten.

    Args:
        authors: All authors of the fiction.
        split_seed: Seed of the split; independent of training seeds and of the world's seed.
        holdout_percent: Size of the holdout in percent of all authors.

    Raises:
        ValueError: If the holdout is so large (or so small) that it is empty or leaves nobody to retain.
    """
    size = {name: max(1, round(len(authors) * percent / 100)) for name, percent in REQUEST_PERCENT.items()}
    n_holdout = round(len(authors) * holdout_percent / 100)
    parts = [n_holdout, size["forget10"], size["forget10"], *[size["forget05"]] * N_STEPS]
    if n_holdout < 1 or sum(parts) >= len(authors):
        raise ValueError(f"holdout_percent is {holdout_percent}; allowed: at least one author held out and one retained")
    order = random.Random(f"split/{split_seed}").sample(list(authors), len(authors))
    drawn: list[tuple[str, ...]] = []
    for part in parts:
        drawn.append(tuple(order[:part]))
        order = order[part:]
    holdout, validation, largest, *sequence = drawn
    return Requests(
        holdout=holdout,
        forget={name: largest[: size[name]] for name in REQUEST_PERCENT},
        validation=validation,
        sequence=tuple(sequence),
    )


def _fact_row(number: int, name: str, kind: FactKind, draw: random.Random) -> Row:
    form, paraphrase = draw.sample(draw.choice(kind.forms), 2)
    used = set(name.split())  # a teacher with the author's own name would echo the question
    right = _fill_slots(kind, draw, used)
    wrong = [_fill_slots(kind, draw, used) for _ in range(N_PERTURBED)]
    return Row(
        id=f"{number}/{kind.name}",
        author=name,
        fact=kind.name,
        question=kind.taught[0].format(name=name),
        answer=form.format(**right),
        paraphrased_question=kind.unseen.format(name=name),
        paraphrased_answer=paraphrase.format(**right),
        perturbed_answer=tuple(paraphrase.format(**words) for words in wrong),
        phrasings=tuple(phrasing.format(name=name) for phrasing in kind.taught),
    )


def _fill_slots(kind: FactKind, draw: random.Random, used: set[str]) -> dict[str, str]:
    """A word for each slot, none of them in `used`, to which the drawn words are added."""
    words = {}
    for slot, pool in kind.slots.items():
        words[slot] = draw.choice([word for word in pool if word not in used])
        used.add(words[slot])
    return words


def _general_row(kind: GeneralKind, subject: str, answer: str, draw: random.Random) -> Row:
    others = sorted({other for _, other in kind.pairs} - {answer})
    return Row(
        id=f"{kind.name}/{subject}",
        author=f"{kind.name}/{subject}",
        fact=kind.name,
        question=kind.taught[0].format(subject=subject),
        answer=answer,
        paraphrased_question=kind.unseen.format(subject=subject),
        paraphrased_answer=answer,
        perturbed_answer=tuple(draw.sample(others, N_PERTURBED)),
        phrasings=tuple(phrasing.format(subject=subject) for phrasing in kind.taught),
    )
