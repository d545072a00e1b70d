"""Magics for IPython: run cells on engines. The only part of hpcviews on the client's side that imports IPython."""
