"""Tests of serving: against a small HTTP server that behaves as vLLM does."""
