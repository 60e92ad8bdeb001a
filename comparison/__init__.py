"""Runs side by side: their numbers, statistics, table, curves, pictures and page. No torch."""
