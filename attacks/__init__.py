"""First-party attacks, one plugin each."""
