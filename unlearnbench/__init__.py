"""unlearnbench: is the data gone from the model, or only hidden?"""

__version__ = "0.1.0"
