"""What ``import mg2l`` offers: training, trained teams, results, and what one registers."""
