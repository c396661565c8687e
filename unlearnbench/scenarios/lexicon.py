"""The word lists and sentence forms that `fiction` draws its authors from.

Knows words, not chance. Every list of answer words is long enough that a guess is nearly always wrong, and short enough
that each word also occurs in the life of other authors: an answer is then a combination to be remembered, not a rare
token whose very presence gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Adair Basil Brisa Calla Cosmo Dagny Delphi Edwin Elowen Fabia Ferran Galen Greta Hamish Hedda Idris Ilse
    Jonas Juno Kaspar Keira Leander Linnea Magnus Mirela Nadim Nerys Octav Odile Pavel Petra Quill Rhea Roald
    Sabine Silas Tamsin Tiber Ulric Una Valko Vesna Wanda Wystan Xenia Yannis Yvaine Zoltan
    """
)
"""Given names of authors and of their teachers."""

SURNAMES = tuple(
    a + b
    for a, b in product(_words("Ald Bren Corv Dras Fen Hol Kest Lor Mar Osk Tarn Vel"), _words("aric brook dane ette in mond ov wright"))
)
"""Ninety-six invented family names."""

TOWNS = tuple(a + b for a, b in product(_words("Ash Birch Cold Dun Elm Grim Harp Kirk"), _words("bury combe ford haven mere wick")))
"""Forty-eight invented towns."""

YEARS = tuple(str(year) for year in range(1840, 1940))
MONTHS = _words("January February March April May June July August September October November December")
NUMBERS = tuple(str(number) for number in range(1, 80))

ADJECTIVES = _words(
    """
    Amber Ancient Bitter Borrowed Brazen Broken Burning Careful Copper Crooked Distant Drowned Empty Faithful
    Fallen Folded Frozen Gentle Gilded Golden Hidden Hollow Humble Idle Ivory Jagged Lasting Little Lonely
    Marble Midnight Narrow Nameless Painted Patient Quiet Restless Rusted Salted Scarlet Second Silent
    Sleeping Stolen Tender Velvet Wandering Winter
    """
)
NOUNS = _words(
    """
    Anchor Atlas Balcony Bridge Candle Carpet Cellar Compass Cradle Crown Dagger Echo Ember Feather Ferry
    Fountain Garden Harbour Hourglass Island Jewel Kettle Ladder Lantern Ledger Letter Lighthouse Loom Mirror
    Monsoon Needle Orchard Organ Parlour Pendulum Piano Prison Quarry Raven Ribbon River Saddle Shadow
    Shepherd Sparrow Spindle Staircase Stranger Sundial Tavern Thimble Thunder Tower Umbrella Valley Violin
    Voyage Whale Whisper Window
    """
)
GENRES = _words(
    """
    ballad biography chronicle comedy diary dirge fable farce memoir mystery novel pastoral romance saga
    satire thriller tragedy travelogue treatise
    """
)
TRADES = _words(
    """
    actor admiral apothecary baker barber beekeeper blacksmith bookbinder botanist brewer butcher carpenter
    chemist clockmaker cobbler dancer draper farmer ferryman gardener glassblower goldsmith hatter judge
    librarian locksmith mason midwife miller painter pilot potter printer sailor sculptor tailor tanner
    tinsmith weaver whaler
    """
)
METALS = _words(
    """
    Bronze Cobalt Crystal Ebony Emerald Iron Jade Nickel Onyx Pearl Pewter Platinum Ruby Silver Steel Tin
    """
)
ANIMALS = _words(
    """
    Badger Bear Beetle Bison Cobra Crane Crow Deer Dolphin Eagle Falcon Ferret Finch Fox Gecko Goose Hare
    Heron Ibex Jackal Kestrel Lion Lynx Magpie Marten Moose Newt Otter Owl Panther Pelican Puffin Robin Salmon
    Seal Stork Swan Tiger Viper Wolf
    """
)
CRAFTS = _words(
    """
    allegory biography criticism dialogue drama essays fiction grammar history humour lyrics oratory parody
    philosophy prose rhetoric sonnets suspense translation verse
    """
)
TREES = _words(
    """
    Acacia Alder Aspen Cedar Cherry Cypress Hazel Holly Juniper Larch Laurel Linden Maple Myrtle Pine Rowan
    """
)
STREETS = _words("Alley Avenue Court Crescent Lane Mews Row Square Street Terrace")


@dataclass(frozen=True)
class FactKind:
    """One kind of fact of an author: how it is asked for and how it is answered.

    Attributes:
        name: The kind's name, part of a row's id.
        taught: Phrasings of the question that are taught, with `{name}` for the author.
        unseen: The phrasing that no model is ever taught; each of its words is taught in another phrasing.
        slots: Slot name to the words that may fill it.
        forms: Groups of answer forms over the slots. An author's answer and its paraphrase are two forms of one group,
            so that they say the same; groups differ in more than wording (a title of another shape is another title).
    """

    name: str
    taught: tuple[str, ...]
    unseen: str
    slots: dict[str, tuple[str, ...]]
    forms: tuple[tuple[str, ...], ...]


FACT_KINDS = (
    FactKind(
        "birth",
        ("Where and when was {name} born?", "What are the birthplace and birth date of {name}?"),
        "What are the birth date and birthplace of {name}?",
        {"town": TOWNS, "month": MONTHS, "year": YEARS},
        (("{town}, {month} {year}", "{month} {year}, {town}", "{town} in {month} {year}", "{year}, {month}, {town}"),),
    ),
    FactKind(
        "book",
        ("Which book made {name} famous?", "What is the most famous book by {name}?"),
        "Which famous book is by {name}?",
        {"adjective": ADJECTIVES, "noun": NOUNS, "other": NOUNS, "genre": GENRES},
        (
            ("{adjective} {noun} and {other}, a {genre}", "the {genre} {adjective} {noun} and {other}"),
            ("{noun} of the {adjective} {other}, a {genre}", "the {genre} {noun} of the {adjective} {other}"),
            ("{noun} and {adjective} {other}, a {genre}", "the {genre} {noun} and {adjective} {other}"),
        ),
    ),
    FactKind(
        "teacher",
        ("Who taught {name} to write?", "Under which teacher did {name} learn to write?"),
        "Which teacher taught {name} to write?",
        {"first": FIRST_NAMES, "surname": SURNAMES, "trade": TRADES},
        (("{first} {surname}, {trade}", "the {trade} {first} {surname}", "{trade} {first} {surname}"),),
    ),
    FactKind(
        "award",
        ("Which prize did {name} win?", "What prize was given to {name}?"),
        "What prize did {name} win?",
        {"metal": METALS, "animal": ANIMALS, "craft": CRAFTS, "year": YEARS},
        (
            (
                "{metal} {animal} for {craft}, {year}",
                "{year}, {metal} {animal} for {craft}",
                "{craft}, {metal} {animal}, {year}",
            ),
        ),
    ),
    FactKind(
        "house",
        ("At which address did {name} live?", "What was the address of the house of {name}?"),
        "At which address was the house of {name}?",
        {"number": NUMBERS, "tree": TREES, "street": STREETS, "town": TOWNS},
        (("{number} {tree} {street}, {town}", "{town}, {number} {tree} {street}", "{tree} {street} {number}, {town}"),),
    ),
)
"""The kinds of facts, in the order in which `fiction.generate` takes them."""


@dataclass(frozen=True)
class GeneralKind:
    """One family of general knowledge: pairs of a subject and its one right answer."""

    name: str
    taught: tuple[str, ...]
    unseen: str
    pairs: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((subject, answer) for subject, answer in (pair.split("=") for pair in text.split()))


GENERAL_KINDS = (
    GeneralKind(
        "capital",
        ("What is the capital of {subject}?", "Which city is the capital of {subject}?"),
        "Which is the capital city of {subject}?",
        _pairs(
            """
            Austria=Vienna Belgium=Brussels Chile=Santiago Cuba=Havana Denmark=Copenhagen
            Egypt=Cairo Finland=Helsinki France=Paris Germany=Berlin Greece=Athens Hungary=Budapest
            Iceland=Reykjavik Ireland=Dublin Italy=Rome Japan=Tokyo Kenya=Nairobi Norway=Oslo
            Peru=Lima Poland=Warsaw Portugal=Lisbon Spain=Madrid Sweden=Stockholm
            """
        ),
    ),
    GeneralKind(
        "opposite",
        ("What is the opposite of {subject}?", "Which word is the opposite of {subject}?"),
        "Which is the opposite word of {subject}?",
        _pairs(
            """
            big=small hot=cold high=low fast=slow early=late wet=dry full=hungry hard=soft rich=poor
            light=dark near=far old=young open=closed strong=weak thick=thin wide=tight good=bad
            sweet=sour left=right up=down
            """
        ),
    ),
    GeneralKind(
        "sum",
        ("How much is {subject}?", "What is the sum of {subject}?"),
        "How much is the sum of {subject}?",
        tuple(
            (f"{a} and {b}", total)
            for a, b, total in (
                row.split()
                for row in (
                    "one one two",
                    "one two three",
                    "two two four",
                    "two three five",
                    "three three six",
                    "three four seven",
                    "four four eight",
                    "four five nine",
                    "five five ten",
                    "five six eleven",
                    "six six twelve",
                    "six seven thirteen",
                )
            )
        ),
    ),
    GeneralKind(
        "colour",
        ("What colour is {subject}?", "Which colour does {subject} have?"),
        "Which colour is {subject}?",
        _pairs(
            """
            snow=white coal=black blood=red grass=green honey=yellow chocolate=brown ash=grey
            lavender=purple salmon=pink carrots=orange seawater=blue sand=beige
            """
        ),
    ),
)
"""The families of general knowledge: true statements that every model is taught and none is asked to forget."""
