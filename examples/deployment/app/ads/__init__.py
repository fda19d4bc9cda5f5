"""A federated conversion model as a Flower app."""
