"""Automatic differentiation made visible: the graph drawn, its backward pass traced, its gradients checked.

nodes, graph, layering, drawing: autograd's own graph, its plain record, where to place it, how to draw it.
tracing, recording, local_derivatives, trace: a backward pass under hooks, what they note, and what it comes to.
checking, jacobians, layouts, comparison: gradients in every way there is, compared.
derivatives: torch.func's, documented. saving, allocation: memory, measured.
"""
