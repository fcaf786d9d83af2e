"""Tests, one folder a room; `acceptance` turns the wheel, `bench` measures it."""
