"""Teachers to show the wheel with: one simulated, one that replays recorded exchanges."""
