"""hpcviews and its peers side by side: ``python -m tests.bench`` (see README.md)."""
