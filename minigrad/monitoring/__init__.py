"""Watching a network train: the gradient's flow through its layers, its updates, and what is wrong with them.

`monitor` has the class that people use. It gathers from `layers` (activations) and `updates` (parameters) what
`readings` holds, and `verdicts` says in words what that means.
"""
