"""The tabs of the app, a module for each."""
