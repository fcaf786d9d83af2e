"""Tests of distill."""
