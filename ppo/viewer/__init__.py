"""Watching games live: the page of `--mode=watch` and its server."""
