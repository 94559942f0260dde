"""Generators of video that make a clip chunk by chunk, each behind the frames before it."""
