"""dptrain: differentially private training for medical imaging.

docs/architecture.md draws the house and says what each room is for; docs/guarantee.md holds the contract. A floor
knows nothing of those above it.
"""

__version__ = "0.1.0"
