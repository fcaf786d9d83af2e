"""The nouns every room shares: tables, sessions, routes, task identity. Imports nothing of stillroom's."""
