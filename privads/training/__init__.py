"""Training with differential privacy: the plan, the sampler, the clipping, and the engine that holds them together."""
