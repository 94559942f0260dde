"""Toy samplers with known answers, and contract tests for plugins.

`tts_vision.testing.toys` needs nothing; `tts_vision.testing.contracts` needs pytest.
"""
