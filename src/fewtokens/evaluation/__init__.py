"""What few tokens preserve, and what they cost."""
