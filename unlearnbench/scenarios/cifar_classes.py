"""The classes of CIFAR-10 and CIFAR-100 by number, and which classes of the one are near to those of the other in meaning.

Names and their order are those of the data sets (Krizhevsky 2009); the hub spells "crab" as "cra". Knows no image.
"""

from __future__ import annotations

from typing import NamedTuple

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""Super-class -> its classes; super-classes stand in the order of their numbers."""

COARSE = tuple(SUPERCLASSES)
CIFAR100 = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))
COARSE_OF = {name: coarse for coarse, names in SUPERCLASSES.items() for name in names}
"""Class of CIFAR-100 -> its super-class."""


class Transfer(NamedTuple):
    """Classes of CIFAR-10 that features are transferred to, as many of each sort."""

    near: tuple[str, ...]
    far: tuple[str, ...]


_BEASTS = Transfer(("cat", "dog", "deer"), ("airplane", "automobile", "ship"))
_GRAZERS = Transfer(("deer", "dog", "horse"), ("airplane", "automobile", "ship"))
_CREATURES = Transfer(("bird", "cat", "frog"), ("airplane", "automobile", "truck"))
_PLANTS = Transfer(("bird", "deer", "frog"), ("airplane", "automobile", "truck"))
_THINGS = Transfer(("automobile", "ship", "truck"), ("bird", "frog", "horse"))

TRANSFER = {
    "aquatic_mammals": _GRAZERS,
    "fish": _CREATURES,
    "flowers": _PLANTS,
    "food_containers": _THINGS,
    "fruit_and_vegetables": _PLANTS,
    "household_electrical_devices": _THINGS,
    "household_furniture": _THINGS,
    "insects": _CREATURES,
    "large_carnivores": _BEASTS,
    "large_man-made_outdoor_things": _THINGS,
    "large_natural_outdoor_scenes": Transfer(("airplane", "bird", "ship"), ("automobile", "cat", "truck")),
    "large_omnivores_and_herbivores": _GRAZERS,
    "medium_mammals": _BEASTS,
    "non-insect_invertebrates": _CREATURES,
    "people": _BEASTS,
    "reptiles": _CREATURES,
    "small_mammals": _BEASTS,
    "trees": _PLANTS,
    "vehicles_1": _THINGS,
    "vehicles_2": _THINGS,
}
"""Super-class of CIFAR-100 -> the three classes of CIFAR-10 nearest to it in meaning and the three farthest, chosen by hand."""
