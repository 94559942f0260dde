"""``python -m tts_vision`` is the command ``tts-vision``."""

from tts_vision.cli import main

main()
