"""The command hpcviews."""
