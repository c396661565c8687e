"""First-party unlearning methods, one plugin each."""
