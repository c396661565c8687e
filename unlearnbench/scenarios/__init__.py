"""Scenarios: the data, the models and the requests to forget."""
