"""Clusters: started, watched, ended; launcher plug-ins."""
