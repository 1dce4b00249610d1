"""The registered operators, and what they stand on: checks, autograd, the graph's arrays."""
