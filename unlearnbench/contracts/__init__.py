"""The contract tests, and the tiny scenarios they run plugins on."""
