"""What to do with a prediction: computed here, on arrays alone; said by report/.

Each module answers one question with rows of report/decision.py; decide() asks them all.
"""
