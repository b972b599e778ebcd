"""Bulk scoring: every picture of a folder or bucket to rows in a folder of parts that can be resumed.

input ── sources ──▶ listing (sorted, on disk) ──▶ parts ──▶ engine (local, ray) ──▶ rows ──▶ output folder
"""
