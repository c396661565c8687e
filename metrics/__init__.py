"""First-party metrics, one plugin each."""
