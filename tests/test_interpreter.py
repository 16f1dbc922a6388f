"""Ring 2: the tests of the kernels and the Functions again, with Triton's kernels running in its interpreter.

In processes of their own: Triton reads TRITON_INTERPRET when it is imported, and interprets or compiles for good. In
few, since each takes seconds to import PyTorch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import INTERPRETED

pytest.importorskip("triton", reason="needs Triton, which is on Linux only")
if INTERPRETED:
    pytest.skip("this process is already the interpreter's", allow_module_level=True)

TESTS = Path(__file__).parent
FILES = {
    "kernels": ["kernels/test_contract.py", "kernels/test_layouts.py", "kernels/test_bias.py"],
    "statistics": ["kernels/test_statistics.py", "minigrad/test_watched.py", "minigrad/test_functional.py"],
    "functions": ["minigrad/test_functions.py", "kernels/test_operators.py", "minigrad/test_nn.py"],
    "updates": ["kernels/test_update.py", "minigrad/test_captured.py", "kernels/test_bench.py"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", FILES)
def test_passes_in_tritons_interpreter(group):
    files = [str(TESTS / file) for file in FILES[group]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *files]
    result = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    print(result.stdout[-6000:], result.stderr[-2000:])
    assert result.returncode == 0
    assert " passed" in result.stdout
