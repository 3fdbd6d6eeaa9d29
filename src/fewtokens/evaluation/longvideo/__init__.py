"""Questions with certain answers about videos of any length, of which no more than a chunk is ever in memory."""
