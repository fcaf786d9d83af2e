"""Measurements, side by side in one run; recorded results lie in `results/`. Never asserted in a timed test."""
