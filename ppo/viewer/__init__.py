"""Games that are watched live: the page of `--mode=watch` and what serves it."""
