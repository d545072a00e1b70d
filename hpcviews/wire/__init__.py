"""What travels between client, controller and engine, and how."""
