"""The report of a run: one HTML page that holds its curves, a game and the agent itself; see docs/report.md."""
