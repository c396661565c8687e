"""What methods change models with: subspaces, components, representations, gates, and the models they refer to."""
