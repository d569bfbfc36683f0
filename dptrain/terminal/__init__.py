"""What a person at a terminal gives and sees: words, secrets, results, progress. Nothing here knows of cohorts."""
