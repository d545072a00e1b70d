"""The one process between clients and engines."""
