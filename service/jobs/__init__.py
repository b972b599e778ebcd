"""Bulk scoring through the service: `/v1/jobs`.

doors (API process) ──▶ job folders ◀── worker (`python -m service.jobs`, niced, one job at a time) ──▶ scoring.run
"""
