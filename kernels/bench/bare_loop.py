"""Gradient descent on (x - 3)^2 + 1 as anyone would write it, with nothing reported: what the trainer is compared with.

python kernels/bench/bare_loop.py 20000            prints the seconds that so many steps take, on one thread
"""

import sys
import time

import torch

steps = int(sys.argv[1])
torch.set_num_threads(1)
x = torch.tensor(0.0, requires_grad=True)
start = time.perf_counter()
for _ in range(steps):
    loss = (x - 3) ** 2 + 1
    loss.backward()
    with torch.no_grad():
        x -= 0.1 * x.grad  # type: ignore[operator] # there is one, after backward
    x.grad = None
seconds = time.perf_counter() - start
if abs(x.item() - 3) > 1e-5:
    sys.exit(f"the loop has not found the minimum: x is {x.item()}")
print(seconds)
