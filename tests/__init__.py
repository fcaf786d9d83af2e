"""Tests, one folder a room; `acceptance` turns the wheel, `bench` measures it."""

import os

# As distill/train.py; read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
