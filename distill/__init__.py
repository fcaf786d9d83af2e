"""Offline: from captures to an adapter that passed the gate."""
