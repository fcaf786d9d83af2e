"""The proxy: names the task of a request, chooses who answers it, forwards, and captures before it acknowledges."""
