"""The games of an audit, always named: population, release, canaries."""
