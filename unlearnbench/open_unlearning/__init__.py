"""The evaluation of open-unlearning, by its conventions and in its files."""
