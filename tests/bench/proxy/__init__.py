"""What the proxy costs, side by side with others in one run: `python -m tests.bench.proxy`, or `make bench-proxy`."""
