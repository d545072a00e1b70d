"""For tests of hpcviews and of its plug-ins."""
