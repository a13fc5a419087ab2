"""Everything that can end a run early, so that no rank hangs and none is left behind.

handshake.py    before any work: are all ranks running the same thing?
signals.py      requests to save and leave
watchdog.py     heartbeats; ends a job that makes no progress or has lost its launcher
stragglers.py   ranks that are slower than the others
replicas.py     ranks whose weights have drifted apart
"""
