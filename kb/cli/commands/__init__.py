"""What the commands besides `match` do."""
