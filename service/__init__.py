"""The only place that serves: two BentoML runners, one `analyze()`, the doors that translate, metrics, logs."""
