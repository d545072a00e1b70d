"""The launcher plug-ins that come with hpcviews, registered by entry point like anyone else's."""
