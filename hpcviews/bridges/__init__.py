"""Other libraries' ways to run things in parallel, on the engines of a cluster. One file each; imported when used."""
