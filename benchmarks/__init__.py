"""Speed, measured side by side with what people use instead. Nothing here is a test."""
