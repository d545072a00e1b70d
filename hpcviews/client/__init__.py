"""The client: `Client`, views, results. One I/O thread per Client owns its sockets; everything else may be used
from any thread.
"""
