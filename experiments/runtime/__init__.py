"""The process that trains: its device, its group, its signals, its screen."""
