"""Automatic differentiation made visible: the graph drawn, its backward pass traced, its gradients checked."""
