"""The only place that serves: BentoML services, REST, metrics."""
