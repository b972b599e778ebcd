"""Pure inference: image bytes → faces → emotions. Knows no server.

pipeline = load_pipeline(model="default", engine="auto")
results = pipeline.analyze([jpeg_bytes, ...])        # an Analysis or a HandlerError for each, in order
"""

from handlers.errors import HandlerError
from handlers.pipeline import Pipeline, load_pipeline
from handlers.results import Analysis, Face

__all__ = ["Analysis", "Face", "HandlerError", "Pipeline", "load_pipeline"]
