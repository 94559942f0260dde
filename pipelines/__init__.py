"""Models, and the samplers that drive them."""

DEFAULT_MODEL = "playground"
