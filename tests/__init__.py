"""Tests, one folder a room; `acceptance` turns the wheel, `bench` measures it."""

import os

# Read once, when torch is first imported: OpenMP threads that spin while they wait starve the vLLM beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
