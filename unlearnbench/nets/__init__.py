"""Nets for small images: ResNet-9, -18, -20, -56 and a ViT, in widths and depths down to what a CPU trains in seconds."""

from unlearnbench.nets.catalogue import NetName, net, prepare, recipe_of
from unlearnbench.nets.classifier import Classifier
from unlearnbench.nets.resnet9 import ResNet9, whitening_directions
from unlearnbench.nets.resnets import ResNet, load_published_resnet20
from unlearnbench.nets.vit import VisionTransformer, vit

__all__ = [
    "Classifier",
    "NetName",
    "ResNet",
    "ResNet9",
    "VisionTransformer",
    "load_published_resnet20",
    "net",
    "prepare",
    "recipe_of",
    "vit",
    "whitening_directions",
]
