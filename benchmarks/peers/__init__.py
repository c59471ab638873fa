"""Other ways to round K, written from their papers, as baselines."""
