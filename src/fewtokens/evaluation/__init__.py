"""What few tokens keep, and what they cost."""
