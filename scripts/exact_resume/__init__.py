"""The parts of `scripts/check_exact_resume.py`: saved states of games, and stopped runs in every family of worlds."""
