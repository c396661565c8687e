"""Which training examples a prediction depends on."""
